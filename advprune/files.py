"""Files that appear whole or not at all, and locks.

A file NAME is written as .NAME.part beside itself, and then renamed. What a killed process left is
overwritten by the next one. If two processes could write the same file, they hold a lock.
"""
import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from advprune.errors import UserError


def part(path: Path) -> Path:
    """Where the file `path` is written until it is whole."""
    return path.with_name(f".{path.name}.part")


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into. It appears at `path` whole at the end of the block, or not at all."""
    path = Path(path)
    unfinished = part(path)
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:  # a full disk names no file
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def write(path: str | Path, content: bytes | str) -> None:
    """Write bytes or text; the file appears whole or not at all."""
    with writing(path) as file:
        # The name of a file, which a text may hold, is of any bytes.
        file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str)
                   else content)


def write_json(path: str | Path, record: dict) -> None:
    write(path, json.dumps(record, indent=1) + "\n")


def write_csv(path: str | Path, rows: list[dict]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue())


def write_npz(path: str | Path, **arrays: np.ndarray) -> None:
    with writing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_figure(path: str | Path, figure: Any) -> None:
    with writing(path) as file:
        figure.savefig(file, format="png")


# --- one process at a time


@contextlib.contextmanager
def locked(path: str | Path, what: str = "", wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, in a folder that exists, within the block.

    The lock ends with its process, however that ends. If another process holds it, this one
    waits, or raises UserError, which calls it `what`.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{what} is in use by another process; wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()


def made_once(path: Path, make: Callable[[Path], None]) -> Path:
    """The file `path`. One process makes it, by make(a path to write); others wait for that."""
    with locked(path.with_name(f".{path.name}.lock"), wait=True):
        if not path.exists():
            make(part(path))
            part(path).rename(path)
    return path


def check_new(path: str | Path) -> None:
    """Raise UserError unless `path` is free and in a folder that exists."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists already; move it or give another name, nothing is "
                        "overwritten")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
