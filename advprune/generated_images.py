"""Generated images to train on, as published with Wang et al. 2023: FILE.npz of image and label.

A file of np.savez is read in place. One of np.savez_compressed is decoded once, into a hidden file
beside it or in --cache-dir: .NAME.SIZE-TIME.npy.
"""
import zipfile
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from advprune import files
from advprune.errors import UserError, reason
from advprune.image_files import PIECE, Stored, clear


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
        raise UserError(f"--extra-data {path} cannot be used: {reason(error)}") from None


def _header(archive, key):
    """(shape, dtype, length of the header) of an array in an npz; ValueError if it is unfit."""
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
    cache = place / f".{path.name}.{stat.st_size}-{stat.st_mtime_ns}.npy"
    if _whole(cache, member.file_size):
        return cache, 0
    try:
        place.mkdir(parents=True, exist_ok=True)
        with files.locked(place / f".{path.name}.lock", wait=True):
            if not _whole(cache, member.file_size):
                _decompress(archive, member, cache, f"decoding {path}")
                if not cache_dir:  # there, another file's images may be in use
                    clear(place, f".{path.name}.", "-*.npy", cache.name)
    except OSError as error:
        raise ValueError(f"it is compressed, and decoding it into {place} failed "
                         f"({error.strerror}); give another folder as --cache-dir") from None
    return cache, 0


def _whole(cache, size):
    return cache.exists() and cache.stat().st_size == size


def _decompress(archive, member, cache, says):
    with (archive.open(member) as compressed, files.writing(cache) as file,
          tqdm(total=member.file_size, unit="B", unit_scale=True, desc=says, disable=None) as bar):
        while piece := compressed.read(PIECE):
            bar.update(file.write(piece))
