"""Data sets as uint8 tensors on the device, addressed by example id.

    digits         1,797 images of scikit-learn, 8x8 enlarged to 1x28x28; every fifth is a test
    image
    mnist          60,000 + 10,000, 1x28x28      (torchvision downloads it where --data-dir lacks
    it) fashion-mnist  60,000 + 10,000, 1x28x28
    cifar10        50,000 + 10,000, 3x32x32
    synthetic      2,000 + 500, 1x28x28: ten smooth patterns under noise, for tests

An example's id is its index in the training set. There are no worker processes: a whole set fits
on the device, and a batch is `ops.augment(dataset.images, ids, ...)`.
"""
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torchvision import datasets

from runs import UserError

TORCHVISION = {  # name -> class, where it looks below --data-dir
    "mnist": (datasets.MNIST, "MNIST/raw"),
    "fashion-mnist": (datasets.FashionMNIST, "FashionMNIST/raw"),
    "cifar10": (datasets.CIFAR10, "cifar-10-batches-py"),
}
NAMES = ["digits", *TORCHVISION, "synthetic"]
# The usual l-infinity budget of each set and the step of its PGD-50-10, in units of [0, 1]
# pixels. For MNIST and CIFAR-10 those of fast_adversarial; for digits see README, "The embedded
# data set".
EPSILON = {"digits": 0.13, "mnist": 0.3, "fashion-mnist": 0.1, "cifar10": 8 / 255,
           "synthetic": 0.1}
PGD_STEP = {"digits": 0.13 / 30, "mnist": 0.01, "fashion-mnist": 0.1 / 30, "cifar10": 2 / 255,
            "synthetic": 0.1 / 30}


@dataclass
class Dataset:
    """images [N, C, H, W] uint8 and labels [N] int64 to train on, and the same to test on."""

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: list


def load(name, data_dir="data", limit=None, device="cpu"):
    """The Dataset of that name on the device; limit keeps the first examples of the training set.

    Raises UserError where files are absent and cannot be downloaded, or are damaged.
    """
    if Path(data_dir).exists() and not Path(data_dir).is_dir():
        raise UserError(f"--data-dir {data_dir} is a file; give the folder of the data sets")
    embedded = {"digits": _digits, "synthetic": _synthetic}.get(name)
    parts = embedded() if embedded else _torchvision(name, Path(data_dir))
    images, labels, test_images, test_labels, classes = parts
    return Dataset(name, images[:limit].to(device), labels[:limit].to(device),
                   test_images.to(device), test_labels.to(device), list(classes))


def order(ids, seed, epoch):
    """The ids in the order in which this epoch visits them, on every process and device."""
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    generator = torch.Generator().manual_seed(mixed)
    return ids[torch.randperm(len(ids), generator=generator).to(ids.device)]


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


def _torchvision(name, root):
    kind, folder = TORCHVISION[name]
    place = root / folder
    absent = [path for path in (place, place.parent, root) if not path.exists()]
    try:
        try:
            train, test = kind(root, train=True), kind(root, train=False)
        except RuntimeError:  # torchvision's word for "not found or corrupted"
            train, test = kind(root, train=True, download=True), kind(root, train=False)
    except Exception as error:  # it lets anything through: URLError, UnpicklingError, ...
        for path in absent:
            with suppress(OSError):
                path.rmdir()  # what a failed download left empty
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} cannot be read from {place} nor downloaded ({reason}); put "
                        "torchvision's files there, or give their root as --data-dir") from None
    return *_tensors(train, place), *_tensors(test, place), train.classes


def _tensors(part, place):
    images, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets).long()
    if len(images) != len(labels) or len(images) == 0:
        raise UserError(f"{place} is damaged: {len(images)} images but {len(labels)} labels")
    if images.dim() == 3:
        return images[:, None], labels  # [N, H, W] -> [N, 1, H, W]
    return images.permute(0, 3, 1, 2).contiguous(), labels  # [N, H, W, C] -> [N, C, H, W]
