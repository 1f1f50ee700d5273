"""Weights: of finished runs, and as others publish them."""
import hashlib
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from advprune import distributed, models, own_code, run
from advprune.errors import UserError


def of_run(folder: str | Path, trust_code: bool = False) -> nn.Module:
    """The finished network of a run's directory.

    trust_code allows a network whose code only the run itself still has (own_code.py). Raises
    UserError if the directory is no finished run, or its weights are not those it wrote.
    """
    network = run.read_config(folder)["network"]
    model = models.build(**network, code=own_code.of_run(folder, network, trust_code))
    return load_run(model, folder)


def load_run(model: nn.Module, folder: str | Path) -> nn.Module:
    """The model, of a run's network, with its final weights. Raises UserError as `of_run`."""
    file = Path(folder) / "model.safetensors"
    load(model, file)
    recorded = run.record(folder).get("weights")
    if recorded and fingerprint(model) != recorded:
        raise UserError(f"{file} is not what the run wrote: its checksum differs from that in "
                        "train.json")
    return model


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of the model's weights."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        content = value.cpu().contiguous().flatten().view(torch.uint8)  # numpy has no bfloat16
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()


WELL_KNOWN = ("state_dict", "model_state_dict", "model", "net")  # keys of a file's weights
NORMALISATION = {"mean": 0, "mu": 0, "std": 1, "sigma": 1}  # name of a buffer -> which it is
NUMBERS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def load(model: nn.Module, path: str | Path, new_head: bool = False) -> nn.Module:
    """Load a state dict (.safetensors, or a torch file of tensors alone) into the model.

    Accepts what the field publishes: a bare state dict, or one under any key; names with a common
    prefix such as `module.`; half precision. If the file has a normalisation (mean and std, or
    mu and sigma), in the state dict or beside it, it must be the model's. new_head keeps the
    model's own last layer if the file's has another number of classes, and says so. Raises
    UserError if the file is unreadable or does not fit.
    """
    path, wanted = Path(path), model.state_dict()
    state = _without_prefix(_state_dict(_content(path), path), wanted)
    state = _without_normalisation(state, wanted, models.normalisation(model), path)
    for key in wanted:  # a count that nothing reads, and that older files lack
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, wanted[key])
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    head = (new_head and len({key.rpartition(".")[0] for key in other}) == 1
            and all(state[key].shape[1:] == wanted[key].shape[1:] for key in other))
    if head:  # the same inputs, and another number of outputs
        state |= {key: wanted[key] for key in other}
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    wrong += [key for key in state if key not in wanted]
    if wrong:
        raise UserError(f"{path} does not fit this network: {len(wrong)} tensors differ, the "
                        f"first is {wrong[0]!r}; check --dataset, --model and --width")
    if odd := [key for key in wanted if not _fits(state[key], wanted[key])]:
        value = state[odd[0]]
        raise UserError(f"{path} holds {len(odd)} tensors that are no plain numbers of this "
                        f"network, the first is {odd[0]!r} ({value.dtype}, {value.layout}); "
                        "save them as dense float32")
    if bad := [key for key in wanted
               if state[key].dtype in NUMBERS and not state[key].isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite, first in {bad[0]!r}")
    model.load_state_dict(state)
    if head:
        distributed.say(f"{path} has another number of classes: {', '.join(other)} keep random "
                        "values")
    return model


def _content(path):
    """What the file holds."""
    try:
        if path.suffix.lower() == ".safetensors":
            # load_file takes no path of other encodings.
            return load_safetensors(path.read_bytes())
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no weights file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # zip, pickle and safetensors each raise their own kinds
        raise UserError(f"{path} cannot be read as a file of tensors alone; if it holds more, such"
                        " as a whole network, save its tensors with the code that made it: "
                        "torch.save(model.state_dict(), FILE)") from None


def _state_dict(content, path):
    """The dict of tensors in what a file holds: the whole, or the one inside, under any key.

    A normalisation beside it, or in a dict beside it, is added.
    """
    beside: dict[str, Tensor] = {}
    while not _is_state_dict(content):
        inside = content if isinstance(content, dict) else {}
        dicts = {key: value for key, value in inside.items() if isinstance(value, dict)}
        for part in (inside, *dicts.values()):
            beside |= {key: torch.as_tensor(value) for key, value in part.items()
                       if key in NORMALISATION and isinstance(value, (Tensor, list, tuple))}
        dicts = {key: value for key, value in dicts.items()
                 if _is_state_dict(value) and not value.keys() <= beside.keys()} or dicts
        if not dicts:
            raise UserError(f"{path} holds no state dict; save one by "
                            "torch.save(model.state_dict(), FILE)")
        known = [key for key in WELL_KNOWN if key in dicts]
        if len(dicts) > 1 and not known:
            raise UserError(f"{path} holds several state dicts, {', '.join(map(str, dicts))}; "
                            "save the one to use in a file of its own")
        key = (known or list(dicts))[0]
        if len(dicts) > 1 and _is_state_dict(dicts[key]):
            distributed.say(f"{path} holds several state dicts, {', '.join(map(str, dicts))}; "
                            f"{key} is used")
        content = dicts[key]
    return {**beside, **content}


def _is_state_dict(content):
    return isinstance(content, dict) and len(content) > 0 and all(
        isinstance(key, str) and torch.is_tensor(value) for key, value in content.items())


def _fits(value, wanted):
    """Whether these numbers can be copied into the network's: dense, and not quantised."""
    return (value.layout == torch.strided and not value.is_meta
            and (value.dtype in (wanted.dtype, *NUMBERS) or not wanted.is_floating_point()))


def _without_prefix(state, wanted):
    """The state without the dotted prefixes that all its names share, until one name is wanted.

    The tensors of a normalisation may lie outside the network, and have other prefixes.
    """
    state = {key: value for key, value in state.items() if key != "n_averaged"}  # AveragedModel's
    while True:
        names = [key for key in state if _last(key) not in NORMALISATION]
        prefixes = {key.partition(".")[0] + "." if "." in key else "" for key in names}
        if len(prefixes) != 1 or prefixes == {""} or not wanted.keys().isdisjoint(names):
            return state
        state = {key.removeprefix(*prefixes): value for key, value in state.items()}


def _without_normalisation(state, wanted, ours, path):
    """The state without a normalisation, which is built in here.

    ours: (mean, std) of the model. Raises UserError if the file's differ.
    """
    odd = [key for key in state if _last(key) in NORMALISATION and key not in wanted]
    theirs = list(ours)
    for key in odd:
        theirs[NORMALISATION[_last(key)]] = state[key].flatten().tolist()
    if not all(map(_close, ours, theirs)):
        raise UserError(f"{path} has the normalisation {models.shown_normalisation(*theirs)}, and "
                        f"this network {models.shown_normalisation(*ours)}; give the file's with "
                        "--mean and --std, or take it out of the file")
    return {key: state[key] for key in state if key not in odd}


def _close(a, b):
    """Whether these values of each channel, or one for all, agree as far as float16 can tell."""
    return (len(a) == len(b) or 1 in (len(a), len(b))) and torch.allclose(
        torch.tensor(a), torch.tensor(b), rtol=5e-4)


def _last(name):
    return name.rpartition(".")[2]
