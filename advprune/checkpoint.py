"""Checkpoints: files of a state to continue from, whole and with a checksum."""
import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import torch

from advprune import files

HEAD = b"advprune state "  # then the SHA-256 of the rest, and a line end


def saved(content: Any) -> bytes:
    """What torch.save makes of content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def loaded(content: bytes, device: str | torch.device = "cpu") -> Any:
    """What `saved` was given: tensors, numbers, and lists and dicts of them."""
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


class State:
    """A file in which work in progress keeps what it needs to continue."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, content: Any) -> None:
        """Write content, with a checksum."""
        rest = saved(content)
        with files.writing(self.path) as file:
            file.write(HEAD + hashlib.sha256(rest).hexdigest().encode() + b"\n")
            file.write(rest)

    def load(self, device: str | torch.device = "cpu") -> Any:
        """What `write` wrote. Raises ValueError if it is damaged, OSError without the file."""
        head, _, rest = self.path.read_bytes().partition(b"\n")
        if head != HEAD + hashlib.sha256(rest).hexdigest().encode():
            raise ValueError("its checksum is wrong")
        return loaded(rest, device)

    def read(self, device: str | torch.device = "cpu") -> Any:
        """What `write` wrote; None without the file.

        A damaged file is renamed to FILE.damaged, with a warning, and counts as none.
        """
        try:
            return self.load(device)
        except FileNotFoundError:
            return None
        except ValueError as error:
            os.replace(self.path, f"{self.path}.damaged")
            print(f"{self.path} is damaged ({error}); it is now {self.path}.damaged, and the work "
                  "starts anew", file=sys.stderr)
            return None

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
