"""Files that appear whole or not at all, and state files with a checksum."""
import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from advprune import locks


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into. It appears at `path` whole at the end of the block, or not at all.

    Parts of it that killed processes of this machine left behind are deleted first.
    """
    path = Path(path)
    locks.sweep(path.parent, glob.escape(path.name))
    part = locks.part(path)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:  # a full disk names no file
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        part.unlink(missing_ok=True)


def write(path: str | Path, content: bytes | str) -> None:
    """Write bytes or text; the file appears whole or not at all."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, record: dict) -> None:
    write(path, json.dumps(record, indent=1) + "\n")


def write_csv(path: str | Path, rows: list[dict]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue())


def write_saved(path: str | Path, save: Callable[[Any, IO[bytes]], Any], content: Any) -> None:
    """Write what `save(content, file)` produces, as torch.save and np.savez do."""
    buffer = io.BytesIO()
    save(content, buffer)
    write(path, buffer.getvalue())


def write_figure(path: str | Path, figure: Any) -> None:
    write_saved(path, lambda content, file: content.savefig(file, format="png"), figure)


STATE = b"advprune state "  # then the SHA-256 of the rest, and a line end


def write_state(path: str | Path, content: Any) -> None:
    """Write what torch.save makes of content, with a checksum."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    content = buffer.getvalue()
    with writing(path) as file:
        file.write(STATE + hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)


def read_state(path: str | Path, device: str | torch.device = "cpu") -> Any:
    """What `write_state` wrote. Raises ValueError where the file is damaged, OSError without one.

    Files without a checksum, of older versions, are read too.
    """
    content = Path(path).read_bytes()
    if content.startswith(STATE):
        head, _, content = content.partition(b"\n")
        if head[len(STATE):].decode(errors="replace") != hashlib.sha256(content).hexdigest():
            raise ValueError("its checksum is wrong")
    try:
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:  # zip and pickle raise half a dozen kinds
        raise ValueError(str(error).partition("\n")[0]) from None


def progress(path: Path, device: str | torch.device = "cpu") -> Any:
    """The content of a state file to continue from; None without one.

    A damaged file is renamed to FILE.damaged, with a warning, and counts as none.
    """
    try:
        return read_state(path, device)
    except FileNotFoundError:
        return None
    except ValueError as error:
        os.replace(path, f"{path}.damaged")
        print(f"{path} is damaged ({error}); it is now {path}.damaged, and the work starts anew",
              file=sys.stderr)
        return None
