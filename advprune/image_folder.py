"""A folder of images for each class, decoded once: DIR/PART/CLASS/*, PART is train or val.

What is decoded goes into hidden files in DIR, or into --cache-dir:

    .advprune-PART-SIZE-KEY.npy     uint8 [N, SIZE, SIZE, 3]
    .advprune-PART-SIZE-KEY.json    paths and labels by id, and the files that cannot be used

KEY is a digest of DECODING and of the files' paths, labels, sizes and times. If one of them has
changed, all are decoded again.
"""
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from advprune import distributed, files
from advprune.errors import UserError, reason
from advprune.image_files import Stored, clear

AT_ONCE = 256  # images decoded at a time; it bounds the memory
DECODING = 2  # the version of what is made of an image file


def open_folder(root: str | Path, part: str, size: int, skip_bad: bool = False,
                cache_dir: str | Path | None = None) -> tuple[Stored, Tensor, list, list]:
    """(Stored [N, 3, size, size], labels [N] int64, classes, paths) of root/part/CLASS/*.

    An image is a file with an extension of a format that Pillow opens, at any depth. What begins
    with a dot is skipped. Other files are counted on stderr. The images' shorter side is resized
    to `size` and the centre is cut out. They are decoded once, into hidden files in cache_dir
    (None: root). The order is shuffled, the same each time, so that the first N are of all
    classes; paths [N] are below root/part. Raises UserError if there are no images, if some
    cannot be used (skip_bad leaves those out instead), and if the decoded files cannot be
    written.
    """
    folder = Path(root) / part
    others = Counter[str]()
    try:
        classes, found, others = _find(folder)
    except OSError:
        found = []
    kinds = listed([f"{count} {kind}" for kind, count in others.most_common()])
    if not found:
        raise UserError(f"{folder} holds no images in a folder for each class"
                        f"{', but other files: ' * bool(kinds)}{kinds}; give the folder of "
                        "train/CLASS/* and val/CLASS/* as --data-dir")
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
        distributed.say(f"other files of {folder} are left out, {others.total()} in all: {kinds}")
    labels, shape = torch.tensor(index["labels"]), (len(index["labels"]), size, size, 3)
    start = cache.with_suffix(".npy").stat().st_size - prod(shape)
    return Stored(cache.with_suffix(".npy"), start, shape), labels, classes, index["paths"]


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
    """The content of cache.json; None if it, or the images that it counts, are not whole."""
    try:
        index = json.loads(cache.with_suffix(".json").read_text("utf-8"))
        n = len(index["labels"])
        torch.tensor(index["labels"]), index["unusable"][:0], index["paths"][:0]
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
    """The image as RGB of 8 bits, upright. ValueError if the range of its values is unknown."""
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
            return reason(error)

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
