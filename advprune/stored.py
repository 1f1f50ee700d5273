"""Images that stay in files, for sets larger than memory, under the interface of a tensor.

    Stored       uint8 images [N, H, W, C] in a file, seen as [N, C, H, W]
    Joined       several such parts, or tensors, as one set with their ids in order
    open_npz     generated images as published with Wang et al. 2023: FILE.npz of image and label

All have len, shape, narrow(0, start, n), split(size), to(device) and [id], [slice], [ids]; the
last three give tensors on the device. Files are read by pread and not memory-mapped. That gathers
faster. The pages do not count as the process's memory. A file cut short is an error, not a crash.
"""
import copy
import glob
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advprune import files, locks
from advprune.cli import UserError

PIECE = 2**24  # bytes decompressed at a time


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


# --- generated images in an npz

def open_npz(path: str | Path, shape: Sequence[int], classes: int,
             cache_dir: str | Path | None = None) -> tuple[Stored, Tensor]:
    """(Stored, labels [N] int64) of an npz: `image` uint8 [N, H, W, C] and `label`, integers [N].

    shape is the data set's (C, H, W); grey images may be [N, H, W]. A file of np.savez is read
    in place. One of np.savez_compressed is decoded once, into a hidden file in cache_dir (None:
    beside it). Raises UserError for any other file, and for labels outside 0 to classes - 1.
    Nothing is unpickled.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            (n, *size), kind, offset = _header(archive, "image")
            channels, height, width = shape
            if kind != np.uint8:
                raise ValueError(f"its images are {kind}, not uint8")
            if size != [height, width, channels] and (channels > 1 or size != [height, width]):
                raise ValueError(f"its images are of shape {(n, *size)}, those of the data set of "
                                 f"{('N', height, width, channels)}")
            labels = _labels(archive, n, classes)
            file, start = _in_place(path, archive, cache_dir)
            return Stored(file, start + offset, (n, height, width, channels)), labels
    except FileNotFoundError:
        raise UserError(f"there is no --extra-data {path}") from None
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UserError(f"--extra-data {path} cannot be used: {reason}") from None


def _header(archive, key):
    """(shape, dtype, length of the header) of an array in an npz; ValueError where it is unfit."""
    if f"{key}.npy" not in archive.namelist():
        raise ValueError(f"it has no array {key!r}")
    member = archive.getinfo(f"{key}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = (np.lib.format.read_array_header_1_0 if version == (1, 0) else
                np.lib.format.read_array_header_2_0)
        shape, fortran, kind = read(file)
        offset = file.tell()
    if kind.hasobject:
        raise ValueError(f"its {key}s are pickled objects; for safety they are not loaded")
    if fortran:
        raise ValueError(f"its {key}s are in Fortran order; save np.ascontiguousarray(images)")
    if not shape or shape[0] == 0:
        raise ValueError(f"it has no {key}s")
    if member.file_size != offset + prod(shape) * kind.itemsize:
        raise ValueError(f"its {key}s are cut short")
    return shape, kind, offset


def _labels(archive, n, classes):
    shape, kind, _ = _header(archive, "label")
    if shape != (n,):
        raise ValueError(f"it has {n} images, but labels of shape {shape}")
    if kind.kind not in "iu":
        raise ValueError(f"its labels are {kind}, not integers")
    with archive.open("label.npy") as file:
        labels = np.lib.format.read_array(file, allow_pickle=False)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"its labels go from {labels.min()} to {labels.max()}, the classes of "
                         f"the data set from 0 to {classes - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def _in_place(path, archive, cache_dir):
    """(file, byte) where image.npy begins uncompressed: in the npz, or decoded beside it."""
    member = archive.getinfo("image.npy")
    if member.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as file:
            file.seek(member.header_offset + 26)  # a local header: 30 bytes, a name, an extra
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
        return path, member.header_offset + 30 + name + extra
    stat = path.stat()
    place = Path(cache_dir or path.parent)
    locks.sweep(place, f".{glob.escape(path.name)}.*")
    cache = place / f".{path.name}.{stat.st_size}-{stat.st_mtime_ns}.npy"
    if not (cache.exists() and cache.stat().st_size == member.file_size):
        try:
            place.mkdir(parents=True, exist_ok=True)
            with (archive.open(member) as compressed, files.writing(cache) as file,
                  tqdm(total=member.file_size, unit="B", unit_scale=True, desc=f"decoding {path}",
                       disable=None) as bar):
                while piece := compressed.read(PIECE):
                    bar.update(file.write(piece))
        except OSError as error:
            raise ValueError(f"it is compressed, and decoding it into {place} failed "
                             f"({error.strerror}); give another folder as --cache-dir") from None
        if not cache_dir:  # there, another file's images may be in use
            clear(place, f".{path.name}.", "-*.npy", cache.name)
    return cache, 0


def clear(folder: Path, start: str, end: str, ours: str) -> None:
    """Delete the decoded files of earlier versions of what `ours` was decoded from."""
    for path in folder.glob(f"{glob.escape(start)}*{end}"):
        if not path.name.startswith(ours):
            path.unlink(missing_ok=True)
