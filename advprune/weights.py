"""Weights: of finished runs, and as others publish them."""
import hashlib
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from advprune import models, own_code, run
from advprune.errors import UserError


def of_run(folder: str | Path, trust_code: bool = False) -> nn.Module:
    """The finished network of a run's directory.

    trust_code allows a network whose code only the run itself still has (own_code.py). Raises
    UserError where the directory is no finished run, or its weights are not those it wrote.
    """
    network, file = run.read_config(folder)["network"], Path(folder) / "model.safetensors"
    model = models.build(**network, code=own_code.of_run(folder, network, trust_code))
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
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def load(model: nn.Module, path: str | Path, new_head: bool = False) -> nn.Module:
    """Load a state dict (.safetensors, or a torch file of tensors alone) into the model.

    Accepts what the field publishes: a bare state dict, or one under `state_dict`,
    `model_state_dict` or `model`; names that start with `module.`; half precision. new_head keeps
    the model's own last layer where the file's has another number of classes, and says so. Raises
    UserError where the file is unreadable or does not fit.
    """
    path = Path(path)
    state: Any
    try:
        if path.suffix == ".safetensors":
            # load_file takes no path of other encodings.
            state = load_safetensors(path.read_bytes())
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no weights file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # zip, pickle and safetensors each raise their own kinds
        raise UserError(f"{path} cannot be read as a weights file (of tensors only)") from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{path} holds no state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = model.state_dict()
    for key in wanted:  # a count that nothing reads, and that older files lack
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, wanted[key])
    for key in ("mean", "std"):  # RobustBench stores its normalisation; here it is built in
        state.pop(key, None)
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
    if bad := [key for key in wanted if not state[key].isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite, first in {bad[0]!r}")
    model.load_state_dict(state)
    if head:
        print(f"{path} has another number of classes: {', '.join(other)} keep random values",
              file=sys.stderr)
    return model
