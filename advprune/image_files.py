"""Images that stay in files, for sets larger than memory, under the interface of a tensor.

    Stored       uint8 images [N, H, W, C] in a file, seen as [N, C, H, W]
    Joined       several such parts, or tensors, as one set with their ids in order

Both have len, shape, split(size) and [id], [slice], [ids]; the last three give tensors on the
device. Stored also has narrow(0, start, n) and to(device). Files are read by pread and not
memory-mapped. That gathers faster. The pages do not count as the process's memory. A file cut
short is an error, not a crash. image_folder.py and generated_images.py make them.
"""
import copy
import glob
import os
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advprune.errors import UserError

PIECE = 2**24  # bytes decompressed, or hashed, at a time


class Images:
    """What Stored and Joined share: indexing, in terms of gather(ids on the CPU, int64)."""

    device = torch.device("cpu")
    shape: torch.Size

    def gather(self, ids: Tensor) -> Tensor:
        """The images [n, C, H, W] uint8 of these ids [n], on the device."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: int | slice | Tensor) -> Tensor:
        if isinstance(at, slice):
            ids = torch.arange(*at.indices(len(self)))
        else:
            ids = torch.as_tensor(at, device="cpu").reshape(-1).contiguous()
        if ids.dtype != torch.int64 or (len(ids) and not 0 <= ids.min() <= ids.max() < len(self)):
            raise IndexError(f"ids must be whole numbers from 0 to {len(self) - 1}")
        images = self.gather(ids)
        return images[0] if isinstance(at, int) else images

    def split(self, size: int) -> Iterator[Tensor]:
        """The images in tensors of `size`, each read when it is asked for."""
        return (self[start:start + size] for start in range(0, len(self), size))


class Stored(Images):
    """uint8 images of shape (N, H, W, C) in a file from byte `offset` on, seen as [N, C, H, W]."""

    def __init__(self, path: str | Path, offset: int, shape: Sequence[int]) -> None:
        n, height, width, channels = shape
        self.file, self.offset = open(path, "rb", buffering=0), offset  # noqa: SIM115
        self.shape, self.dtype = torch.Size((n, channels, height, width)), torch.uint8

    def to(self, device: str | torch.device) -> "Stored":
        """The same images, given out on another device."""
        other = copy.copy(self)
        other.device = torch.device(device)
        return other

    def narrow(self, dim: int, start: int, length: int) -> "Stored":
        """Images start to start + length - 1, as torch.narrow(images, 0, start, length)."""
        other = copy.copy(self)
        other.offset = self.offset + start * prod(self.shape[1:])
        other.shape = torch.Size((length, *self.shape[1:]))
        return other

    def gather(self, ids: Tensor) -> Tensor:
        _, channels, height, width = self.shape
        cuda = self.device.type == "cuda"
        images = torch.empty((len(ids), height, width, channels), dtype=torch.uint8,
                             pin_memory=cuda)  # so that the copy does not wait for the GPU
        rows = images.numpy().reshape(len(ids), prod(self.shape[1:]))
        if len(ids) and torch.equal(ids, torch.arange(int(ids[0]), int(ids[0]) + len(ids))):
            self.read(rows.reshape(-1), int(ids[0]))
        else:
            for row, i in zip(rows, ids.tolist(), strict=True):
                self.read(row, i)
        return images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()

    def read(self, room: Any, first: int) -> None:
        """Fill this vector of bytes with the images from the first on."""
        at, done = self.offset + first * prod(self.shape[1:]), 0
        while done < len(room):  # one call gives 2 GiB at most
            count = os.preadv(self.file.fileno(), [room[done:]], at + done)
            if count == 0:
                raise UserError(f"{self.file.name} has been cut short since it was opened")
            done += count


class Joined(Images):
    """Parts [N_i, C, H, W], tensors or Stored, on one device, as one set: ids in order."""

    def __init__(self, parts: "Sequence[Tensor | Stored]") -> None:
        self.parts, self.device, self.dtype = parts, parts[0].device, torch.uint8
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)
        self.shape = torch.Size((int(self.ends[-1]), *parts[0].shape[1:]))

    def gather(self, ids: Tensor) -> Tensor:
        images = torch.empty((len(ids), *self.shape[1:]), dtype=self.dtype, device=self.device)
        owner = torch.bucketize(ids, self.ends, right=True)
        for i, part in enumerate(self.parts):
            places = (owner == i).nonzero()[:, 0]
            if len(places):
                mine = ids[places] - (self.ends[i] - len(part))
                if torch.is_tensor(part):  # on the device; and again nothing waits for the GPU
                    mine = mine.to(self.device, non_blocking=True)
                images[places.to(self.device, non_blocking=True)] = part[mine]
        return images


def clear(folder: Path, start: str, end: str, ours: str) -> None:
    """Delete the decoded files of earlier versions of what `ours` was decoded from."""
    for path in folder.glob(f"{glob.escape(start)}*{end}"):
        if not path.name.startswith(ours):
            path.unlink(missing_ok=True)
