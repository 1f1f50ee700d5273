"""The command line of every script: parser, values of flags, errors, the last line.

A script's `main(argv=None)` returns a dict. `run` prints that dict as one line of JSON, last on
stdout. Bad input ends a script with exit code 2 and one sentence on stderr.
"""
import argparse
import contextlib
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import torch

from advprune import distributed, memory, precision
from advprune.errors import UserError


def script() -> str:
    """The name of the script that runs, such as train.py or experiments."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def flag(name: str) -> str:
    """The flag that gives the setting of this name."""
    return f"--{name.replace('_', '-')}"


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and without abbreviations: `--epo` is no `--epochs`."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(prog=script(), description=doc, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(" ".join(message.split()))  # a value may hold line ends


@contextlib.contextmanager
def if_interrupted(say: Callable[[], str]) -> Iterator[None]:
    """If Ctrl-C or a full disk ends the script in this block, `run` adds what say() returns.

    Of blocks in one another the outermost decides.
    """
    try:
        yield
    except BaseException as error:
        cause = _cause(error)
        if isinstance(cause, (KeyboardInterrupt, OSError)):
            cause.advice = say()  # type: ignore[union-attr]
        raise


def _cause(error):
    """The error; or the interrupt that tqdm turned into an error of its own at its first use."""
    return error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error


def run(main: Callable[[], dict]) -> NoReturn:
    """Run a script: its dict is the last line on stdout; bad input exits with 2."""
    _open_streams()
    try:
        record = main()
        if distributed.rank() == 0:
            print(json.dumps(record), flush=True)
        distributed.leave()
    except BaseException as error:
        _explain(error)
    sys.exit(0)


def _open_streams():
    """A closed stdout or stderr takes anything; a terminal without a letter shows its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _explain(error):
    """Print one sentence for what is not the program's fault, and exit; raise the rest."""
    error = _cause(error)
    if isinstance(error, KeyboardInterrupt):
        code, sentence = 130, "interrupted"
    elif isinstance(error, UserError):
        code, sentence = error.code, str(error)
    elif isinstance(error, BrokenPipeError):  # nobody reads the output; what is left goes nowhere
        code, sentence = 141, "nobody reads its output any more"
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(error, OSError) and error.errno:  # others are of a library, with its words
        code = 2
        sentence = f"{error.filename or 'its output'} cannot be written or read ({error.strerror})"
    elif memory.exhausted(error):
        code = 2
        sentence = "memory ran out; take a smaller batch (--batch-size, --shape) or network"
    elif distributed.lost(error):
        code, sentence = 1, f"process {distributed.rank()} ends, because another one has ended"
    else:
        raise error
    if advice := getattr(error, "advice", None):
        sentence += f"; {advice}"
    # All processes of a machine are refused or interrupted alike: the first one says so.
    if distributed.local_rank() == 0 or not isinstance(error, (UserError, KeyboardInterrupt)):
        print(f"{chr(10) * (code == 130)}{script()}: {sentence}", file=sys.stderr)
    sys.exit(code)


# --- values of flags


def number(kind: type, low: float | None = None, high: float | None = None,
           open_low: bool = False, open_high: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number within bounds. A float may be a fraction such as 8/255."""

    def parse(text: str) -> Any:
        try:
            over, slash, under = text.partition("/")
            value = float(over) / float(under) if slash and kind is float else kind(text)
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole' if kind is int else 'a'} number"
            ) from None
        low_ok = low is None or (value > low if open_low else value >= low)
        high_ok = high is None or (value < high if open_high else value <= high)
        if not (low_ok and high_ok and isfinite(value)):
            bounds = [f"{'above' if open_low else 'at least'} {low}"] * (low is not None)
            bounds += [f"{'below' if open_high else 'at most'} {high}"] * (high is not None)
            raise argparse.ArgumentTypeError(f"{text} must be {' and '.join(bounds) or 'finite'}")
        return value

    return parse


def per_channel(one: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """An argparse type: numbers with commas between, () for `none`."""

    def parse(text: str) -> tuple[float, ...]:
        return () if text == "none" else tuple(one(part) for part in text.strip(",").split(","))

    return parse


positive_int = number(int, 1)
fraction = number(float, 0, 1, open_high=True)
budget = number(float, 0, 1)
seed = number(int, 0, 2**63 - 1)


def device(name: str | None) -> torch.device:
    """The device of this name (`cpu`, `cuda`, `cuda:1`), or the best one present for None.

    If it is the CPU, memory stays with the process from now on (memory.keep_freed). A card becomes
    the current one, and computes in float32. Raises UserError if the device is not there, or if
    torchrun's processes outnumber the cards.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda":  # each process has its own card
        name = f"cuda:{distributed.local_rank()}"
        if 0 < torch.cuda.device_count() < distributed.local_world():
            raise UserError(f"{distributed.local_world()} processes of this machine need a card "
                            f"each, but it has {torch.cuda.device_count()}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds that are no longer in use
            chosen = torch.device(name)
        torch.zeros(1, device=chosen).item()  # meta and its like hold no values
    except Exception:  # each kind of device has its own
        raise UserError(f"device {name!r} is not available here; try --device cpu") from None
    if chosen.type == "cpu":
        memory.keep_freed()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # or what names no card goes to the first one
        precision.tf32(False)  # unless --precision asks for it
    return chosen


def duration(seconds: float) -> str:
    """So many seconds in words, rounded: `40 s`, `25 minutes`, `3.5 hours`."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 100 else f"{minutes / 60:.1f} hours"


def command(name: str, argv: list[str] | None) -> str:
    """The command line that repeats this call of the script `name`."""
    return shlex.join(["python", name, *(sys.argv[1:] if argv is None else argv)])
