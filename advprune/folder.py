"""A folder of images for each class, decoded once into a file that stored.Stored reads.

    DIR/train/CLASS/*, DIR/val/CLASS/*    as torchvision's ImageFolder has them
    DIR/.advprune-PART-SIZE-KEY.npy       uint8 [N, SIZE, SIZE, 3], written at the first use
    DIR/.advprune-PART-SIZE-KEY.json      paths and labels by id, and the files that are unreadable

The hidden files go into --cache-dir instead, where that is given. KEY is a digest of the files'
paths, sizes and times. Where a file has changed, all are decoded again.
"""
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from advprune import files, locks, stored
from advprune.cli import UserError

AT_ONCE = 256  # images decoded at a time; it bounds the memory


def open_folder(root: str | Path, part: str, size: int, skip_bad: bool = False,
                cache_dir: str | Path | None = None) -> tuple[stored.Stored, torch.Tensor, list]:
    """(Stored [N, 3, size, size], labels [N] int64, classes) of the images root/part/CLASS/*.

    torchvision's ImageFolder reads them. Their shorter side is resized to `size` and the centre is
    cut out. They are decoded once, into hidden files in cache_dir (None: root). The order is
    shuffled, the same each time, so that the first N are of all classes; the .json beside the .npy
    has the paths by id. Raises UserError where there are no images, where some cannot be read
    (skip_bad leaves those out instead), and where the decoded files cannot be written.
    """
    from torchvision import datasets  # here, because the import takes as long as torch's own

    folder = Path(root) / part
    try:
        classes, numbers = datasets.folder.find_classes(folder)
        extensions = datasets.folder.IMG_EXTENSIONS
        found = datasets.folder.make_dataset(folder, numbers, extensions, allow_empty=True)
    except OSError:
        found = []
    if not found:
        raise UserError(f"{folder} holds no images in a folder for each class; give the folder "
                        f"of train/CLASS/* and val/CLASS/* as --data-dir")
    found = [found[i] for i in np.random.default_rng(0).permutation(len(found))]
    place = Path(cache_dir or root)
    locks.sweep(place, ".advprune-*")
    cache = place / f".advprune-{part}-{size}-{_digest(folder, found, bool(cache_dir))}"
    if (index := _index(cache, size)) is None:
        try:
            place.mkdir(parents=True, exist_ok=True)
            _decode(found, size, folder, cache)
        except OSError as error:
            raise UserError(f"cannot write the decoded images into {place}: {error.strerror}; "
                            "give another folder as --cache-dir") from None
        if not cache_dir:  # there, another folder's images may be in use
            stored.clear(place, f".advprune-{part}-{size}-", "", cache.name)
        index = _index(cache, size)
    bad = index["unreadable"]
    if bad and not skip_bad:
        named = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise UserError(f"{len(bad)} of the {len(found)} images of {folder} cannot be read: "
                        f"{named}; repair or delete them, or leave them out with --skip-bad")
    if not index["labels"]:
        raise UserError(f"none of the {len(found)} images of {folder} can be read")
    if bad:
        print(f"{len(bad)} of the {len(found)} images of {folder} cannot be read and are left out",
              file=sys.stderr)
    labels, shape = torch.tensor(index["labels"]), (len(index["labels"]), size, size, 3)
    start = cache.with_suffix(".npy").stat().st_size - prod(shape)
    return stored.Stored(cache.with_suffix(".npy"), start, shape), labels, classes


def _index(cache, size):
    """The content of cache.json; None where it, or the images that it counts, are not whole."""
    try:
        index = json.loads(cache.with_suffix(".json").read_text("utf-8"))
        n = len(index["labels"])
        torch.tensor(index["labels"]), index["unreadable"][:0]
        whole = cache.with_suffix(".npy").stat().st_size > n * size * size * 3
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return index if whole else None


def _digest(folder, found, shared):
    """16 hexadecimal digits for these files as they are now; of this folder alone, if shared."""
    digest = hashlib.sha256(str(folder.resolve()).encode() if shared else b"")
    for path, _ in found:
        try:
            stat = os.stat(path)
            state = stat.st_size, stat.st_mtime_ns
        except OSError:  # a link to nowhere, which is an unreadable image
            state = None
        digest.update(repr((os.path.relpath(path, folder), state)).encode())
    return digest.hexdigest()[:16]


def _decode(found, size, folder, cache):
    """Write what can be read of found, (path, label) pairs, as cache.npy, then cache.json."""
    from torchvision import transforms

    fit = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size)])
    index: dict[str, list] = {"paths": [], "labels": [], "unreadable": []}

    def decode(pair):
        try:
            with Image.open(pair[0]) as image:
                return np.asarray(fit(image.convert("RGB")))
        except Exception:  # its readers let anything through: OSError, SyntaxError, struct.error
            return None

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
                if image is None:
                    index["unreadable"].append(name)
                    continue
                file.write(image)
                index["paths"].append(name)
                index["labels"].append(label)
            bar.update(len(pairs))
        file.seek(0)
        begin(file, len(index["labels"]))  # as long as before: numpy reserves space for the number
    files.write_json(cache.with_suffix(".json"), index)
