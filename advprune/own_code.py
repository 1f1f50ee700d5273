"""A network from a user's own file: `--model FILE.py:NAME`.

NAME is a class or function of FILE.py that takes `classes` or `num_classes`, and also `channels`,
`size` and `width` if it has arguments of these names. It returns an nn.Module for images
[B, channels, size, size] in [0, 1]. A run keeps a copy of the file (network.py) and its checksum.
Code that came with a run is executed only where the caller trusts it.
"""
import hashlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from advprune.errors import UserError


def is_file(name: str) -> bool:
    return ".py:" in name


def digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def resolve(name: str) -> str:
    """FILE.py:NAME with the file's absolute path."""
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}"


def source(name: str) -> str:
    """The source code of FILE.py:NAME. Raises UserError where the file cannot be read."""
    path = name.rpartition(":")[0]
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--model {path} cannot be read: "
                        f"{getattr(error, 'strerror', None) or error}") from None


def of_run(run: str | Path | None, network: dict, trust_code: bool) -> str | None:
    """The source of the network FILE.py:NAME of a run, or of a new one; None for other names."""
    if not is_file(network["name"]):
        return None
    return source_of_run(run, network, trust_code) if run else source(network["name"])


def source_of_run(run: str | Path, network: dict, trust_code: bool) -> str:
    """The source of a run's network: the original file, where it is in place and unchanged.

    Otherwise the run's own copy, which is executed only with trust_code: somebody else may have
    written it. Raises UserError where that is missing, or differs from the recorded checksum.
    """
    path, copy = Path(network["name"].rpartition(":")[0]), Path(run) / "network.py"
    if path.is_absolute() and Path(run).resolve() not in path.resolve().parents:
        try:
            if digest(path.read_text("utf-8")) == network["sha256"]:
                return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            if copy.exists():
                why = "gone"
            else:
                raise UserError(f"{path} and {copy} are both gone; the network of {run} cannot be "
                                "built") from None
        else:
            why = "changed"
    else:
        why = "in the run itself"
    if not trust_code:
        raise UserError(f"{path} is {why}, so the network of {run} is code that the run brings "
                        f"along; read {copy}, then add --trust-code to execute it")
    code = copy.read_text("utf-8") if copy.exists() else ""
    if digest(code) != network["sha256"]:
        raise UserError(f"{copy} is not the code that this run was trained with")
    return code


def construct(name: str, code: str, **given: Any) -> nn.Module:
    """The network NAME of this source code, built with those of the given values that it takes.

    Raises UserError, in one sentence, where the code fails or gives no network.
    """
    path, _, attribute = name.rpartition(":")
    module = ModuleType(f"advprune_network_{digest(code)[:12]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    sys.path.append(str(Path(path).parent))  # it may import its neighbours
    try:
        exec(compile(code, path, "exec"), module.__dict__)
        maker = getattr(module, attribute, None)
        if not callable(maker):
            raise UserError(f"--model: {path} has no function or class {attribute!r}")
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
        model = maker(**{k: v for k, v in given.items() if anything or k in takes})
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"--model: {attribute} of {path} failed with {type(error).__name__}: "
                        + str(error).partition("\n")[0]) from error
    finally:
        sys.path.remove(str(Path(path).parent))
    if not isinstance(model, nn.Module):
        raise UserError(f"--model: {attribute} of {path} gave a {type(model).__name__}, not an "
                        "nn.Module")
    if any(map(is_lazy, model.parameters())):
        images = ", ".join(str(given[name]) for name in ("channels", "size", "size"))
        raise UserError(f"--model: {attribute} of {path} has lazy layers, whose sizes are not "
                        f"known yet; call it on torch.zeros(2, {images}) before you return it")
    return model
