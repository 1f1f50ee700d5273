"""Data sets as uint8 tensors on the device, addressed by example id.

    digits         1,797 images of scikit-learn, 8x8 enlarged to 1x28x28; every fifth is a test
    mnist          60,000 + 10,000, 1x28x28     (torchvision downloads what --data-dir lacks)
    fashion-mnist  60,000 + 10,000, 1x28x28
    cifar10        50,000 + 10,000, 3x32x32
    cifar100       50,000 + 10,000, 3x32x32, of 100 classes
    svhn           73,257 + 26,032, 3x32x32: house numbers, one digit in the middle
    folder         --data-dir's train/CLASS/* and val/CLASS/*, resized to --image-size
    synthetic      2,000 + 500, 1x28x28: ten smooth patterns under noise, for tests

An example's id is its index in the training set. The ids of --extra-data follow. There are no
worker processes: a whole set fits on the device, or its images stay in files (image_files.py).
"""
import csv
import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from advprune import console, distributed, generated_images, image_files, image_folder, ops
from advprune.config import RECIPES, Settings
from advprune.errors import UserError, reason

TORCHVISION = {  # name -> its class, where that looks below --data-dir
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "svhn": ("SVHN", ""),
}


@dataclass
class Dataset:
    """images [N, C, H, W] uint8 and labels [N] int64 to train on, and the same to test on.

    Images are a tensor, or a Stored or Joined if they stay in files. The first `original` ids
    are the data set's own, the others --extra-data's. paths are the files of the first ids, below
    --data-dir's train; empty if an image has no file of its own.
    """

    name: str
    images: torch.Tensor | image_files.Images
    labels: torch.Tensor
    test_images: torch.Tensor | image_files.Images
    test_labels: torch.Tensor
    classes: list
    original: int
    paths: Sequence[str] = ()

    def image_name(self, i: int) -> str:
        """How a person finds training image i: by its path, or else by its id."""
        return self.paths[i] if i < len(self.paths) else str(i)

    def batch(self, ids: Tensor, seed: int, epoch: int, pad: int = 0, flip: bool = False,
              channels_last: bool = False) -> Tensor:
        """The images of these ids, augmented: [B, C, H, W] float32 (ops.augment)."""
        if torch.is_tensor(self.images):
            return ops.augment(self.images, ids, seed, epoch, pad, flip, channels_last)
        images = self.images[ids]
        return ops.augment(images, ids.to(images.device, non_blocking=True), seed, epoch, pad,
                           flip, channels_last, torch.arange(len(ids), device=images.device))

    def checksum(self, part: str) -> str:
        """The SHA-256 of the labels and images of a part, "train" or "test". It reads them all."""
        images, labels = ((self.images, self.labels) if part == "train" else
                          (self.test_images, self.test_labels))
        digest = hashlib.sha256(labels.cpu().numpy().tobytes())
        for piece in images.split(max(1, image_files.PIECE // prod(images.shape[1:]))):
            digest.update(piece.cpu().numpy().tobytes())
        return digest.hexdigest()

    def epoch_size(self, kept: int) -> int:
        """How many images an epoch on `kept` ids visits.

        It is the number of original images, times the fraction of all that is kept. So
        --extra-data makes no epoch longer, and dropping a share of all ids saves that share of the
        time.
        """
        return max(1, round(self.original * kept / len(self.labels)))

    def pruned_size(self, settings: Settings, unknown: float) -> int:
        """How many images an epoch visits after pruning; unknown: see Settings.fraction."""
        n = len(self.labels)
        return self.epoch_size(n - round(settings.fraction(unknown) * n))

    def examples_of(self, settings: Settings, unknown: float = 0.0) -> int:
        """How many images a run of these settings visits; unknown: see Settings.fraction."""
        pruned = settings.pruned_epochs
        whole, left = self.epoch_size(len(self.labels)), self.pruned_size(settings, unknown)
        return (settings.epochs - pruned) * whole + pruned * left

    def batches(self, kept: Tensor, batch_size: int, seed: int, epoch: int,
                extra_fraction: float | None = None, smallest: int = 1) -> Sequence[Tensor]:
        """The ids of each batch of an epoch on the `kept` ids, shuffled by seed and epoch.

        extra_fraction is the share of each batch that comes from --extra-data; None without any.
        A last batch of fewer than `smallest` images is joined to the batch before.
        """
        if not torch.is_tensor(self.images):
            kept = kept.cpu()  # the host reads the files, and should not wait for the GPU
        n = len(kept) if extra_fraction is None else self.epoch_size(len(kept))
        sizes = batch_sizes(n, batch_size, smallest)
        if extra_fraction is None:
            return shuffled(kept, seed, epoch).split(sizes)
        extra = kept >= self.original
        return mixed_batches(kept[~extra], kept[extra], extra_fraction, sizes, seed, epoch)


class Augmented:
    """The images of a training set as epoch `epoch` has them: cropped and flipped, in [0, 1]."""

    def __init__(self, dataset: Dataset, seed: int, epoch: int, pad: int, flip: bool) -> None:
        self.dataset, self.how = dataset, (seed, epoch, pad, flip)
        self.device, self.shape = dataset.labels.device, dataset.images.shape

    def __len__(self) -> int:
        return len(self.dataset.labels)

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.dataset.batch(ids, *self.how)


def load(name: str, data_dir: str | Path = "data", limit: int | None = None,
         device: str | torch.device = "cpu", image_size: int | None = None, skip_bad: bool = False,
         extra: Sequence[str] = (), cache_dir: str | Path | None = None,
         label_file: str | Path | None = None) -> Dataset:
    """The Dataset of that name on the device. limit keeps its first examples to train on.

    With limit 0 a folder's training images are not read at all. image_size and skip_bad are for
    `folder`. extra names npz files of more images to train on; limit does not count them.
    cache_dir is where decoded images go (None: beside their source). label_file has other labels
    for all of the set's training images (`labels_in`). Raises UserError if files are absent and
    cannot be downloaded, or are damaged.
    """
    if Path(data_dir).exists() and not Path(data_dir).is_dir():
        raise UserError(f"--data-dir {data_dir} is a file; give the folder of the data sets")
    embedded = {"digits": _digits, "synthetic": _synthetic}.get(name)
    paths: list[str] = []
    if name == "folder":
        *parts, paths = _folder(data_dir, image_size or RECIPES["folder"]["image_size"], skip_bad,
                                limit == 0, cache_dir)
    else:
        parts = embedded() if embedded else _torchvision(name, Path(data_dir))
    images, labels, test_images, test_labels, classes = parts
    classes, n = list(classes), len(labels[:limit])
    if label_file:
        labels = labels_in(label_file, len(labels), classes, paths)
    images = [images.narrow(0, 0, n)]
    labels = [labels[:n]]
    for path in extra:
        more, more_labels = generated_images.open_npz(path, images[0].shape[1:], len(classes),
                                                      cache_dir)
        images.append(more)
        labels.append(more_labels)
    images = [part.to(device) for part in images]
    return Dataset(name, image_files.Joined(images) if extra else images[0],
                   torch.cat(labels).to(device), test_images.to(device), test_labels.to(device),
                   classes, n, paths[:n])


def of_run(settings: Settings, data_dir: str | Path = "data", cache_dir: str | None = None,
           device: str | torch.device = "cpu", train: bool = True) -> Dataset:
    """The Dataset of a run with these settings. Without train, it has only the test images."""
    return load(settings.dataset, data_dir, settings.limit if train else 0, device,
                settings.image_size, settings.skip_bad, settings.extra_data if train else (),
                cache_dir, settings.labels if train else None)


def check(dataset: Dataset, settings: Settings, recorded: dict, parts: Sequence[str],
          data_dir: str) -> None:
    """Raise UserError if parts of a run's data are not those whose checksums it recorded."""
    flags = [console.flag(name) for name in ("labels", "extra_data") if getattr(settings, name)]
    for part in parts:
        if recorded.get(part) != dataset.checksum(part):
            given = " and ".join([data_dir, *flags] if part == "train" else [data_dir])
            raise UserError(f"{given} is not the data that the run was trained on: the {part} "
                            "images or labels differ; give the folder of the same data as "
                            f"{' and '.join(['--data-dir', *flags])}")


# --- labels in a file


def labels_in(path: str | Path, n: int, classes: Sequence[str], paths: Sequence[str] = ()
              ) -> Tensor:
    """The labels [n] int64 that a file gives the n training images of a set with these classes.

    It is a .npy of n whole numbers; or, for images that are files below train/ with these paths,
    a CSV with the columns path and class, in any order, each image once. Raises UserError if
    the file is neither, or does not fit.
    """
    if paths:
        return _labels_of_csv(path, classes, paths)
    try:
        with open(path, "rb") as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # numpy raises several kinds
        raise UserError(f"--labels {path} is no .npy of whole numbers: {reason(error)}") from None
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise UserError(f"--labels {path} must have a whole number for each of the {n} training "
                        f"images, [{n}], not {labels.dtype} {list(labels.shape)}")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < len(classes):
            raise UserError(f"--labels {path} has the label {label}, but classes go from 0 to "
                            f"{len(classes) - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def _labels_of_csv(path, classes, paths):
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [(row["path"], row["class"]) for row in csv.DictReader(file, restval="")]
    except OSError as error:
        raise UserError(f"--labels {path} cannot be read: {error.strerror}") from None
    except (KeyError, csv.Error):
        raise UserError(f"--labels {path} is no CSV with the columns path and class") from None
    times, known = Counter(name for name, _ in rows), set(paths)
    numbers = {name: i for i, name in enumerate(classes)}
    for odd, what in (
            ([name for name in times if name not in known], "has paths of no training image"),
            ([name for name in times if times[name] > 1], "has images more than once"),
            ([name for name in paths if name not in times], "lacks training images"),
            ([label for _, label in rows if label not in numbers], "has unknown classes")):
        if odd:
            raise UserError(f"--labels {path} {what}: {image_folder.listed(odd)}")
    given = dict(rows)
    return torch.tensor([numbers[given[name]] for name in paths])


def batch_sizes(images: int, batch_size: int, smallest: int = 1) -> list[int]:
    """The sizes of the batches of an epoch; a last one below `smallest` joins the one before."""
    sizes = [min(batch_size, images - i) for i in range(0, images, batch_size)]
    if len(sizes) > 1 and sizes[-1] < smallest:
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    return sizes


def mixed_seed(*key: int) -> int:
    """A seed of 32 bits for this key of whole numbers."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Let torch, numpy and random draw by this seed: a user's own code may use any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def shuffled(ids: Tensor, *key: int) -> Tensor:
    """The ids in the order of this key, (seed, epoch), on every process and device."""
    generator = torch.Generator().manual_seed(mixed_seed(*key))
    return ids[torch.randperm(len(ids), generator=generator).to(ids.device)]


def mixed_batches(own: Tensor, extra: Tensor, fraction: float, sizes: Sequence[int], seed: int,
                  epoch: int) -> list[Tensor]:
    """Batches of these sizes: a `fraction` of each from the ids `extra`, the rest from `own`.

    Each source is shuffled by itself. A source that is too small for the epoch is visited again,
    in another order. If one is empty, all ids come from the other.
    """
    fraction = 1.0 if not len(own) else fraction if len(extra) else 0.0
    shares = [round(fraction * size) for size in sizes]
    rests = [size - share for size, share in zip(sizes, shares, strict=True)]
    streams = []
    for source, (ids, counts) in enumerate([(own, rests), (extra, shares)]):
        laps = -(-sum(counts) // max(1, len(ids)))
        visited = [shuffled(ids, seed, epoch, source, lap) for lap in range(laps)]
        streams.append(torch.cat([ids[:0], *visited])[:sum(counts)].split(counts))
    return [torch.cat(parts) for parts in zip(*streams, strict=True)]


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16  # [N, 1, 8, 8] of 0..16
    images = (F.interpolate(images, size=(28, 28)) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return images[~test], labels[~test], images[test], labels[test], map(str, digits.target_names)


def _synthetic():
    generator = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, 1, 7, 7, generator=generator)
    patterns = F.interpolate(patterns, size=(28, 28), mode="bilinear")
    labels = torch.randint(10, (2500,), generator=generator)
    noise = torch.randn(2500, 1, 28, 28, generator=generator)
    images = ((patterns[labels] + 0.15 * noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return images[:2000], labels[:2000], images[2000:], labels[2000:], map(str, range(10))


def _folder(root, size, skip_bad, only_test, cache_dir):
    test_images, test_labels, classes, _ = image_folder.open_folder(root, "val", size, skip_bad,
                                                                    cache_dir)
    images: Tensor | image_files.Images = torch.empty(0, 3, size, size, dtype=torch.uint8)
    labels = test_labels[:0]
    paths: list[str] = []
    if not only_test:
        images, labels, found, paths = image_folder.open_folder(root, "train", size, skip_bad,
                                                                cache_dir)
        if found != classes:
            odd = sorted(set(found) ^ set(classes))
            raise UserError(f"{root} has {len(odd)} classes in only one of train and val, such as "
                            f"{odd[0]!r}; both need the same folders")
        if empty := _without_images(classes, labels):
            raise UserError(f"{root}/train has no images of {empty}; add images, or delete the "
                            "folders from train and val")
    if empty := _without_images(classes, test_labels):
        distributed.say(f"{root}/val has no images of {empty}, so these are not tested")
    return images, labels, test_images, test_labels, classes, paths


def _without_images(classes, labels):
    present = set(labels.tolist())
    return image_folder.listed([name for i, name in enumerate(classes) if i not in present])


def _torchvision(name, root):
    from torchvision import datasets  # the import takes as long as torch's own

    kind, below = getattr(datasets, TORCHVISION[name][0]), TORCHVISION[name][1]
    place = root / below
    parts = ([dict(split="train"), dict(split="test")] if name == "svhn" else
             [dict(train=True), dict(train=False)])
    absent = [path for path in (place, place.parent, root) if not path.exists()]
    try:
        try:
            train, test = (kind(root, **part) for part in parts)
        except RuntimeError:  # torchvision's word for "not found or corrupted"
            train, test = (kind(root, **part, download=True) for part in parts)
    except Exception as error:  # it lets anything through: URLError, UnpicklingError, ...
        for path in absent:
            with suppress(OSError):
                path.rmdir()  # what a failed download left empty
        raise UserError(f"{name} cannot be read from {place} nor downloaded ({reason(error)}); "
                        "put torchvision's files there, or give their root as --data-dir"
                        ) from None
    classes = map(str, range(10)) if name == "svhn" else train.classes
    return *_tensors(train, place), *_tensors(test, place), classes


def _tensors(part, place):
    labels = part.labels if hasattr(part, "labels") else part.targets  # SVHN's are labels
    images, labels = torch.as_tensor(part.data), torch.as_tensor(labels).long()
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(f"{place} is damaged: {len(images)} images but {len(labels)} labels")
    if images.dim() == 3:
        return images[:, None], labels  # [N, H, W] -> [N, 1, H, W]
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)  # [N, H, W, C] -> [N, C, H, W], as SVHN has them
    return images.contiguous(), labels
