"""Images that stay in files, for sets larger than memory, under the interface of a tensor.

    Stored       uint8 images [N, H, W, C] in a file, seen as [N, C, H, W]
    Joined       several such parts, or tensors, as one set with their ids in order
    open_npz     generated images as published with Wang et al. 2023: FILE.npz of image and label
    open_folder  a folder of images for each class, decoded once into such a file

All have len, shape, narrow(0, start, n), split(size), to(device) and [id], [slice], [ids]; the
last three give tensors on the device. Files are read by pread and not memory-mapped. That gathers
faster. The pages do not count as the process's memory. A file cut short is an error, not a crash.

What is decoded goes into hidden files beside its source, or into --cache-dir:

    .NAME.SIZE-TIME.npy             of a compressed NAME.npz
    .advprune-PART-SIZE-KEY.npy     of a folder DIR/PART/CLASS/*: uint8 [N, SIZE, SIZE, 3]
    .advprune-PART-SIZE-KEY.json    paths and labels by id, and the files that cannot be used

KEY is a digest of DECODING and of the files' paths, labels, sizes and times. If one of them has
changed, all are decoded again.
"""
import copy
import glob
import hashlib
import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from advprune import distributed, files
from advprune.errors import UserError

PIECE = 2**24  # bytes decompressed, or hashed, at a time
AT_ONCE = 256  # images decoded at a time; it bounds the memory
DECODING = 2  # the version of what is made of an image file


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


def clear(folder: Path, start: str, end: str, ours: str) -> None:
    """Delete the decoded files of earlier versions of what `ours` was decoded from."""
    for path in folder.glob(f"{glob.escape(start)}*{end}"):
        if not path.name.startswith(ours):
            path.unlink(missing_ok=True)


# --- a folder of images for each class

def open_folder(root: str | Path, part: str, size: int, skip_bad: bool = False,
                cache_dir: str | Path | None = None) -> tuple[Stored, Tensor, list]:
    """(Stored [N, 3, size, size], labels [N] int64, classes) of the images root/part/CLASS/*.

    An image is a file with an extension of a format that Pillow opens, at any depth. What begins
    with a dot is skipped. Other files are counted on stderr. The images' shorter side is resized
    to `size` and the centre is cut out. They are decoded once, into hidden files in cache_dir
    (None: root). The order is shuffled, the same each time, so that the first N are of all
    classes; the .json beside the .npy has the paths by id. Raises UserError where there are no
    images, where some cannot be used (skip_bad leaves those out instead), and where the decoded
    files cannot be written.
    """
    folder = Path(root) / part
    try:
        classes, found, others = _find(folder)
    except OSError:
        found = []
    if not found:
        raise UserError(f"{folder} holds no images in a folder for each class; give the folder "
                        f"of train/CLASS/* and val/CLASS/* as --data-dir")
    found = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    place = Path(cache_dir or root)
    cache = place / f".advprune-{part}-{size}-{_digest(folder, found, bool(cache_dir))}"
    if (index := _index(cache, size)) is None:
        try:
            place.mkdir(parents=True, exist_ok=True)
            with files.locked(place / f".advprune-{part}-{size}.lock", wait=True):
                if _index(cache, size) is None:
                    _decode(found, size, folder, cache)
                    if not cache_dir:  # there, another folder's images may be in use
                        clear(place, f".advprune-{part}-{size}-", "", cache.name)
        except OSError as error:
            raise UserError(f"cannot write the decoded images into {place}: {error.strerror}; "
                            "give another folder as --cache-dir") from None
        index = _index(cache, size)
    bad = index["unusable"]
    if bad and not skip_bad:
        raise UserError(f"{len(bad)} of the {len(found)} images of {folder} cannot be used: "
                        f"{listed(bad)}; repair or delete them, or leave them out with "
                        "--skip-bad")
    if not index["labels"]:
        raise UserError(f"none of the {len(found)} images of {folder} can be used")
    if bad:
        distributed.say(f"{len(bad)} of the {len(found)} images of {folder} cannot be used and "
                        "are left out")
    if others:
        kinds = listed([f"{count} {kind}" for kind, count in others.most_common()])
        distributed.say(f"other files of {folder} are left out, {others.total()} in all: {kinds}")
    labels, shape = torch.tensor(index["labels"]), (len(index["labels"]), size, size, 3)
    start = cache.with_suffix(".npy").stat().st_size - prod(shape)
    return Stored(cache.with_suffix(".npy"), start, shape), labels, classes


def listed(names: Sequence[str]) -> str:
    """The first ten of these names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _find(folder):
    """(classes, (path, label) of each image in a fixed order, a Counter of the other files)."""
    classes = sorted(entry.name for entry in os.scandir(folder)
                     if entry.is_dir() and not entry.name.startswith("."))
    opened = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    numbers = {name: i for i, name in enumerate(classes)}
    found, others = [], Counter[str]()
    for place, _, names in os.walk(folder, followlinks=True):
        parts = Path(place).relative_to(folder).parts
        for name in names:
            end = os.path.splitext(name)[1].lower()
            if any(part.startswith(".") for part in (*parts, name)):
                continue
            if not parts:
                others["outside the class folders"] += 1
            elif end not in opened:
                others[end or "without an extension"] += 1
            else:
                found.append((numbers[parts[0]], place, name))
    return classes, [(os.path.join(*at), label) for label, *at in sorted(found)], others


def _index(cache, size):
    """The content of cache.json; None where it, or the images that it counts, are not whole."""
    try:
        index = json.loads(cache.with_suffix(".json").read_text("utf-8"))
        n = len(index["labels"])
        torch.tensor(index["labels"]), index["unusable"][:0]
        whole = cache.with_suffix(".npy").stat().st_size > n * size * size * 3
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return index if whole else None


def _digest(folder, found, shared):
    """16 hexadecimal digits for these files as they are now; of this folder alone, if shared."""
    digest = hashlib.sha256(repr((DECODING, str(folder.resolve()) if shared else "")).encode())
    for path, label in found:
        try:
            stat = os.stat(path)
            state = stat.st_size, stat.st_mtime_ns
        except OSError:  # a link to nowhere, which is an unreadable image
            state = None
        digest.update(repr((os.path.relpath(path, folder), label, state)).encode())
    return digest.hexdigest()[:16]


def _sixteen_bits(image):
    """Whether its values are known to go from 0, black, to 65535, white."""
    if image.format == "TIFF":  # some have 12 bits, in some white is 0
        kind = image.tag_v2.get(258), image.tag_v2.get(262)  # BitsPerSample, Photometric
        return image.mode.startswith("I;16") and kind == ((16,), 1)
    return (image.format, image.mode) in {("PNG", "I;16"), ("PNG", "I"), ("PPM", "I"),
                                          ("JPEG2000", "I;16")}


def _rgb(image):
    """The image as RGB of 8 bits, upright. ValueError where the range of its values is unknown."""
    sixteen_bits = _sixteen_bits(image)
    image = ImageOps.exif_transpose(image)
    if sixteen_bits:
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode[0] in "IF":
        raise ValueError(f"its values are {np.asarray(image).dtype}, of no known range")
    return image.convert("RGB")


def _decode(found, size, folder, cache):
    """Write what can be read of found, (path, label) pairs, as cache.npy, then cache.json."""
    from torchvision import transforms

    fit = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    index: dict[str, list] = {"paths": [], "labels": [], "unusable": []}

    def decode(pair):
        try:
            with Image.open(pair[0]) as image:
                return np.asarray(fit(_rgb(image)))
        except UnidentifiedImageError:
            return "Pillow does not know its format"
        except Exception as error:  # its readers let anything through: SyntaxError, struct.error
            return getattr(error, "strerror", None) or str(error).partition("\n")[0]

    def begin(file, n):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)})

    with (files.writing(cache.with_suffix(".npy")) as file, ThreadPoolExecutor() as pool,
          tqdm(total=len(found), unit="img", desc=f"decoding {folder}", disable=None) as bar):
        begin(file, len(found))
        for first in range(0, len(found), AT_ONCE):
            pairs = found[first:first + AT_ONCE]
            for (path, label), image in zip(pairs, pool.map(decode, pairs), strict=True):
                name = os.path.relpath(path, folder)
                if isinstance(image, str):  # the reason why there is none
                    index["unusable"].append(f"{name} ({image})")
                    continue
                file.write(image)
                index["paths"].append(name)
                index["labels"].append(label)
            bar.update(len(pairs))
        file.seek(0)
        begin(file, len(index["labels"]))  # as long as before: numpy reserves space for the number
    files.write_json(cache.with_suffix(".json"), index)
