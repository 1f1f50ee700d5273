"""Which process works on what: locks that end with their owner, and the parts of killed processes.

A file or folder NAME that is being written is called .NAME.HOST.PID.part until it is whole.
"""
import contextlib
import fcntl
import glob
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO

from advprune import cli, signals
from advprune.cli import UserError


def part(path: Path) -> Path:
    """The name of the part that this process writes of `path`."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")


def sweep(folder: str | Path, name: str = "*") -> None:
    """Delete the parts, of the files called `name`, that dead processes of this machine left."""
    for left in Path(folder).glob(f".{name}.{glob.escape(socket.gethostname())}.*.part"):
        process = left.name.split(".")[-2]
        if process.isdecimal() and not alive(int(process)):
            with contextlib.suppress(OSError):  # another was faster, or we may not
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def take(path: Path) -> IO | None:
    """The lock file `path`, made and locked; None where another process holds it."""
    while True:
        file = open(path, "a")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # its owner deleted it after we had opened it


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """The file `path`. One process makes it, by make(a path to write); others wait for that."""
    with open(path.with_suffix(".lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.exists():
            make(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    return path


def lock(path: str | Path, what: str, file: IO | None = None) -> None:
    """Hold the lock file `path` until the script ends, or its process. `what` names what it locks.

    file: from `take`, if that has locked it already. Raises UserError where another process holds
    the lock.
    """
    path = Path(path)
    with signals.interrupts_wait():  # or the file could stay
        file = file or take(path)
        if file is not None:
            cli.at_end(lambda: _release(path, file))
    if file is None:
        raise UserError(f"{what} is in use by another process; wait for it, or end it")


def _release(path, file):
    with file, contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):  # not the next owner's
            path.unlink()
