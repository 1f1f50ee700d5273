"""Code of a user's own, given as FILE.py:NAME: a network, a score, or a rule that prunes.

    --model   a class or function that takes `classes` or `num_classes`, and also `channels`,
              `size` and `width` if it has arguments of these names. It returns an nn.Module for
              images [B, channels, size, size] in [0, 1].
    --score   a function or class of pruning.py's form
    --prune   a function of pruning.py's form

A run keeps a copy of each file (COPIES) and its checksum. Code that came with a run is executed
only if the caller trusts it.
"""
import contextlib
import hashlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from advprune.errors import UserError, first_line, reason

COPIES = {"model": "network.py", "score": "score.py", "prune": "rule.py"}  # by flag, in a run


def is_file(name: str) -> bool:
    return ".py:" in name


def short(name: str) -> str:
    """FILE.py:NAME without the folder; other names as they are."""
    return Path(name).name if is_file(name) else name


def digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def resolve(name: str) -> str:
    """FILE.py:NAME with the file's absolute path."""
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}"


def source(name: str, flag: str = "model") -> str:
    """The source code of FILE.py:NAME. Raises UserError if the file cannot be read."""
    path = name.rpartition(":")[0]
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--{flag} {path} cannot be read: {reason(error)}") from None


def of_run(run: str | Path | None, code: dict, trust_code: bool, flag: str = "model"
           ) -> str | None:
    """The source of the FILE.py:NAME of a run, or of a new one; None for other names.

    code: its record, with `name` and `sha256`. flag: what it is, of COPIES.
    """
    if not is_file(code["name"]):
        return None
    return source_of_run(run, code, trust_code, flag) if run else source(code["name"], flag)


def source_of_run(run: str | Path, code: dict, trust_code: bool, flag: str) -> str:
    """The source of a run's own code: the original file, if it is in place and unchanged.

    Otherwise the run's own copy, which is executed only with trust_code: somebody else may have
    written it. Raises UserError if that is missing, or differs from the recorded checksum.
    """
    path, copy = Path(code["name"].rpartition(":")[0]), Path(run) / COPIES[flag]
    why = "in the run itself"
    if path.is_absolute() and Path(run).resolve() not in path.resolve().parents:
        try:
            original = path.read_text("utf-8")
            if digest(original) == code["sha256"]:
                return original
            why = "changed"
        except (OSError, UnicodeDecodeError):
            why = "gone"
            if not copy.exists():
                raise UserError(f"{path} and {copy} are both gone; the --{flag} of {run} cannot "
                                "be loaded") from None
    if not trust_code:
        raise UserError(f"{path} is {why}, so the --{flag} of {run} is code that the run brings "
                        f"along; read {copy}, then add --trust-code to execute it")
    found = copy.read_text("utf-8") if copy.exists() else ""
    if digest(found) != code["sha256"]:
        raise UserError(f"{copy} is not the code that this run was trained with")
    return found


def loaded(name: str, code: str, flag: str = "model") -> Any:
    """The function or class NAME of this source code. Raises UserError if the code fails."""
    path, _, attribute = name.rpartition(":")
    module = ModuleType(f"advprune_{flag}_{digest(code)[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    with _fails_in_a_sentence(name, flag):
        exec(compile(code, path, "exec"), module.__dict__)
    if not callable(found := getattr(module, attribute, None)):
        raise UserError(f"--{flag}: {path} has no function or class {attribute!r}")
    return found


@contextlib.contextmanager
def _fails_in_a_sentence(name, flag):
    """Within the block the user's code may import its neighbours; what it raises is UserError."""
    path, _, attribute = name.rpartition(":")
    sys.path.append(str(Path(path).parent))
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"--{flag}: {attribute} of {path} failed with {first_line(error)}"
                        ) from error
    finally:
        sys.path.remove(str(Path(path).parent))


def construct(name: str, code: str, **given: Any) -> nn.Module:
    """The network NAME of this source code, built with those of the given values that it takes.

    Raises UserError, in one sentence, if the code fails or gives no network.
    """
    path, _, attribute = name.rpartition(":")
    maker = loaded(name, code)
    takes = inspect.signature(maker).parameters
    named = not takes.keys().isdisjoint({"classes", "num_classes"})
    anything = not named and any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if "num_classes" in takes and "classes" not in takes:
        given["num_classes"] = given.pop("classes")
    elif "classes" not in takes and not anything:
        raise UserError(f"--model: {attribute} of {path} takes no argument `classes` or "
                        "`num_classes`, the number of classes")
    if given.get("width") is None:
        given.pop("width", None)
    elif "width" not in takes and not anything:
        raise UserError(f"--model: {attribute} of {path} takes no argument `width`, so leave "
                        "out --width")
    with _fails_in_a_sentence(name, "model"):
        model = maker(**{k: v for k, v in given.items() if anything or k in takes})
    if not isinstance(model, nn.Module):
        raise UserError(f"--model: {attribute} of {path} gave a {type(model).__name__}, not an "
                        "nn.Module")
    if any(map(is_lazy, model.parameters())):
        images = ", ".join(str(given[name]) for name in ("channels", "size", "size"))
        raise UserError(f"--model: {attribute} of {path} has lazy layers, whose sizes are not "
                        f"known yet; call it on torch.zeros(2, {images}) before you return it")
    return model
