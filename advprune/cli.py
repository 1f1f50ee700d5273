"""The command line of every script: parser, values of flags, errors, the last line.

A script's `main(argv=None)` returns a dict. `script` prints that dict as one line of JSON, last on
stdout. Bad input ends a script with exit code 2 and one sentence on stderr.
"""
import argparse
import contextlib
import errno
import functools
import io
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


# What is wrong with the place to write to or read from, and not with the program.
SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM,
          errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


def _explained(error):
    """(exit code, a sentence) for what is not the program's fault; (1, None) for the rest."""
    if isinstance(error, UserError):
        return error.code, str(error)
    if isinstance(error, BrokenPipeError):
        return 1, "its output was closed"
    if isinstance(error, ConnectionError):
        return 1, str(error)
    if isinstance(error, OSError) and error.errno in SYSTEM:
        return 2, f"{error.filename or 'a file'}: {(error.strerror or '').lower()}"
    if memory.exhausted(error):
        return 2, "memory ran out; try a smaller --batch-size"
    return 1, None


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
                for stream in (sys.stdout, sys.stderr):  # a path may not fit the terminal's code
                    if isinstance(stream, io.TextIOWrapper):
                        stream.reconfigure(errors="backslashreplace")
            with ends:
                _ENDS.append(ends)
                ends.callback(_ENDS.pop)
                record = main(argv)
        except BaseException as error:
            interrupted = KeyboardInterrupt in (type(error), type(error.__context__))
            if interrupted and _ENDS:  # the script that called this one says what to do
                raise KeyboardInterrupt from None
            code, sentence = (130, "interrupted") if interrupted else _explained(error)
            if sentence is None:
                raise
            if isinstance(error, BrokenPipeError):  # lest Python flushes into it at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            say = f"; {ends.say()}" if ends.say and not isinstance(error, UserError) else ""
            if processes.rank() == 0 or not interrupted:
                print(f"{'' if not interrupted else chr(10)}{name}: {sentence}{say}",
                      file=sys.stderr)
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
    """The device of this name (`cpu`, `cuda`, `cuda:1`), or the best one present for None."""
    try:
        chosen = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {name!r} is not available here; try --device cpu") from None
    if chosen.type == "meta":
        raise UserError("device 'meta' holds no data; try --device cpu")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


def command(name: str, argv: list[str] | None) -> str:
    """The command line that repeats this call of the script `name`."""
    return shlex.join(["python", name, *(sys.argv[1:] if argv is None else argv)])
