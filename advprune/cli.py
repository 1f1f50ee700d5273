"""The command line of every script: parser, values of flags, errors, the last line.

A script's `main(argv=None)` returns a dict. `script` prints that dict as one line of JSON, last on
stdout. Bad input ends a script with exit code 2 and one sentence on stderr.
"""
import argparse
import contextlib
import functools
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import torch

from advprune import memory, processes, signals


class UserError(ValueError):
    """Bad input, described in one sentence. A script prints it and exits with this code."""

    code = 2


class Stopped(UserError):
    """A script ends early, as it was told to."""

    code = 3


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and without abbreviations: `--epo` is no `--epochs`."""

    def __init__(self, doc: str | None) -> None:
        super().__init__(description=doc, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")  # a value may hold line ends


class _Ends(contextlib.ExitStack):
    say: Callable[[], str] | None = None  # what to add where Ctrl-C or a full disk ends the script


_ENDS: list[_Ends] = []  # of the scripts that are running, one in another


def if_interrupted(say: Callable[[], str]) -> None:
    """Where Ctrl-C or a full disk ends the script that is running, print what `say()` returns."""
    if _ENDS:
        _ENDS[-1].say = say


def at_end(call: Callable[[], Any]) -> None:
    """Call this when the script that is running ends, however it ends."""
    if _ENDS:
        _ENDS[-1].callback(call)


def _open_streams():
    """A closed stdout or stderr takes anything; a terminal without a letter shows its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure") and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _explained(error):
    """(exit code, a sentence) for what is not the program's fault; None for the rest."""
    if isinstance(error, UserError):
        return error.code, str(error)
    if isinstance(error, BrokenPipeError):
        return 141, "nobody reads its output any more"  # the exit code of SIGPIPE
    if isinstance(error, ConnectionError) and not error.errno:  # of torchrun's processes
        return 1, str(error)
    if isinstance(error, OSError) and error.errno:  # others are of a library, with its own words
        return 2, f"{error.filename or 'its output'} cannot be written or read ({error.strerror})"
    if memory.exhausted(error):
        return 2, "memory ran out; take a smaller --batch-size or network"
    return None


def script(main: Callable[[list[str] | None], dict]) -> Callable[..., dict]:
    """Make main(argv) a script: its dict is the last line on stdout; bad input exits with 2."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> dict:
        name = Path(sys.modules[main.__module__].__file__ or "").name
        ends = _Ends()
        _open_streams()
        try:
            if main.__module__ == "__main__":
                signals.raise_interrupts()
            with ends:
                _ENDS.append(ends)
                ends.callback(_ENDS.pop)
                record = main(argv)
                if processes.rank() == 0:
                    print(json.dumps(record), flush=True)
        except BaseException as error:
            # tqdm turns an interrupt at its first use into an error of its own.
            interrupted = KeyboardInterrupt in (type(error), type(error.__context__))
            if interrupted and _ENDS:  # the script that called this one says what to do
                raise KeyboardInterrupt from None
            explained = (130, "interrupted") if interrupted else _explained(error)
            if explained is None:
                raise
            if isinstance(error, BrokenPipeError):  # what is still buffered goes nowhere
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code, sentence = explained
            if ends.say and (interrupted or isinstance(error, OSError)):
                sentence += f"; {ends.say()}"
            if processes.rank() == 0 or not interrupted:
                print(f"{chr(10) * interrupted}{name}: {sentence}", file=sys.stderr)
            sys.exit(code)
        finally:
            if main.__module__ == "__main__":
                signals.die_of_interrupts()
        return record

    return run


def number(kind: type, low: float | None = None, high: float | None = None,
           open_low: bool = False, open_high: bool = False) -> Callable[[str], Any]:
    """An argparse type: a number within bounds. A float may be a fraction such as 8/255."""

    def parse(text: str) -> Any:
        try:
            value = kind(text) if kind is int or "/" not in text else float(Fraction(text))
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


positive_int = number(int, 1)
fraction = number(float, 0, 1, open_high=True)
budget = number(float, 0, 1)
seed = number(int, 0, 2**63 - 1)


def device(name: str | None) -> torch.device:
    """The device of this name (`cpu`, `cuda`, `cuda:1`), or the best one present for None.

    Where it is the CPU, memory stays with the process from now on (memory.keep_freed).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds that are no longer in use
            chosen = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=chosen).item()  # meta and its like hold no values
    except Exception:  # each kind of device has its own
        raise UserError(f"device {name!r} is not available here; try --device cpu") from None
    if chosen.type == "cpu":
        memory.keep_freed()
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


def command(name: str, argv: list[str] | None) -> str:
    """The command line that repeats this call of the script `name`."""
    return shlex.join(["python", name, *(sys.argv[1:] if argv is None else argv)])
