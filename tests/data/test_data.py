"""Data sets, where they are and where they are damaged; the batches of an epoch."""
import hashlib
import pickle
import shutil

import numpy as np
import pytest
import scipy.io
import torch
from conftest import make, refused
from torchvision import datasets

import evaluate
import train
from advprune import data


@pytest.mark.parametrize(("name", "folder", "shape"), [
    ("mnist", "MNIST", (60000, 1, 28, 28)), ("fashion-mnist", "FashionMNIST", (60000, 1, 28, 28)),
    ("cifar10", "cifar-10-batches-py", (50000, 3, 32, 32))])
def test_real_sets_agree_with_torchvision(real_data, name, folder, shape):
    root = real_data(folder)
    dataset = data.load(name, root)
    assert dataset.images.shape == shape
    assert dataset.test_images.shape == (10000, *shape[1:])
    assert len(dataset.classes) == 10
    theirs = getattr(datasets, data.TORCHVISION[name][0])(root, train=False)
    for i in (0, 17, 9999):
        image, label = theirs[i]
        pixels = torch.tensor(list(image.tobytes())).view(*image.size, -1).permute(2, 0, 1)
        assert torch.equal(dataset.test_images[i].long(), pixels)
        assert dataset.test_labels[i] == label


@pytest.fixture
def small_sets(tmp_path, monkeypatch):
    """(root, {set: (images [N, H, W, C], labels)}) of files in torchvision's layout.

    The images are those to train on.
    """
    root = tmp_path / "data"
    (root / "cifar-100-python").mkdir(parents=True)

    def md5(name):
        return hashlib.md5((root / name).read_bytes()).hexdigest()

    for seed, (part, n) in enumerate((("test", 20), ("train", 40))):
        images, labels = make(n, (32, 32), 3, seed)
        content = {"cifar100": (images, labels * 11), "svhn": (images, labels)}
        (root / "cifar-100-python" / part).write_bytes(pickle.dumps(
            {"data": images.transpose(0, 3, 1, 2).reshape(n, -1), "fine_labels": labels * 11}))
        scipy.io.savemat(root / f"{part}_32x32.mat", {
            "X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
        monkeypatch.setattr(datasets.CIFAR100, f"{part}_list", [
            [part, md5(f"cifar-100-python/{part}")]])
    (root / "cifar-100-python/meta").write_bytes(pickle.dumps(
        {"fine_label_names": [f"class {i}" for i in range(100)]}))
    monkeypatch.setattr(datasets.CIFAR100, "meta", {
        **datasets.CIFAR100.meta, "md5": md5("cifar-100-python/meta")})
    monkeypatch.setattr(datasets.SVHN, "split_list", {
        part: ["", f"{part}_32x32.mat", md5(f"{part}_32x32.mat")] for part in ("train", "test")})
    for kind in (datasets.CIFAR100, datasets.SVHN):
        monkeypatch.setattr(kind, "download", lambda self: None)
    return root, content


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 100), ("svhn", 10)])
def test_cifar100_and_svhn_are_read_trained_and_evaluated(small_sets, name, classes):
    root, content = small_sets
    images, labels = content[name]
    dataset = data.load(name, root)
    assert np.array_equal(dataset.images.permute(0, 2, 3, 1).numpy(), images)
    assert dataset.labels.tolist() == labels.tolist()
    assert (len(dataset.test_labels), len(dataset.classes)) == (20, classes)
    assert dataset.classes[7] == {"cifar100": "class 7", "svhn": "7"}[name]
    record = train.main(["--dataset", name, "--data-dir", str(root), "--width", "1", "--epochs",
                         "1", "--batch-size", "20", "--out", "run"])
    assert record["classes"] == dataset.classes
    assert evaluate.main(["run", "--attack", "fgsm"])["n"] == 20


@pytest.mark.parametrize(("name", "file"), [
    ("cifar100", "cifar-100-python/train"), ("svhn", "test_32x32.mat")])
def test_damaged_cifar100_and_svhn_are_refused(small_sets, capsys, name, file):
    root, _ = small_sets
    (root / file).write_bytes((root / file).read_bytes()[:-9])
    said = refused(train.main, ["--dataset", name, "--data-dir", str(root)], capsys)
    assert f"{name} cannot be read from {root}" in said


def test_digits_are_embedded():
    digits = data.load("digits")
    assert digits.images.shape == (1438, 1, 28, 28)
    assert digits.test_images.shape == (359, 1, 28, 28)
    assert digits.images.dtype == torch.uint8
    assert digits.images.max() == 255
    assert digits.labels.bincount().min() > 100


@pytest.mark.parametrize("damage", ["truncated", "missing", "garbage"])
def test_damaged_mnist_is_refused(real_data, tmp_path, capsys, damage):
    root = tmp_path / "data"
    shutil.copytree(f"{real_data('MNIST')}/MNIST", root / "MNIST",
                    ignore=shutil.ignore_patterns("*.gz"))
    file = root / "MNIST/raw/train-images-idx3-ubyte"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1_000_000])
    elif damage == "garbage":
        file.write_bytes(b"<html>not found</html>")
    else:
        file.unlink()
    before = sorted(tmp_path.rglob("*"))
    err = refused(train.main, ["--dataset", "mnist", "--data-dir", str(root)], capsys)
    assert "mnist cannot be read" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_limit_keeps_the_first_and_the_whole_test_set():
    whole, few = data.load("synthetic"), data.load("synthetic", limit=7)
    assert torch.equal(few.images, whole.images[:7])
    assert len(few.test_labels) == len(whole.test_labels)


# --- the batches of an epoch

def test_order_visits_every_id_once_and_differs_by_epoch_and_seed():
    ids = torch.arange(0, 500, 3)
    keys = (1, 2), (1, 2), (1, 3), (2, 2)
    one, again, epoch, seed = (data.shuffled(ids, *key) for key in keys)
    assert torch.equal(one, again)
    assert torch.equal(one.sort().values, ids)
    assert not torch.equal(one, epoch)
    assert not torch.equal(one, seed)


@pytest.mark.parametrize("smallest", [1, 2, 4])
def test_only_a_remainder_that_is_too_small_is_merged(smallest):
    for images in (0, 1, 2, 31, 32, 33, 34, 63, 64, 65, 97, 500):
        plain = [len(part) for part in torch.arange(images).split(32)] if images else []
        sizes = data.batch_sizes(images, 32, smallest)
        assert sum(sizes) == images
        if images % 32 >= smallest or images % 32 == 0 or images < 32:
            assert sizes == plain
        else:
            assert sizes == [*plain[:-2], 32 + images % 32]


def test_batches_share_both_sources_as_told():
    own, extra = torch.arange(0, 100, 2), torch.arange(200, 230)
    sizes = [32] * 6 + [8]
    batches = data.mixed_batches(own, extra, 0.7, sizes, 1, 2)
    assert [len(batch) for batch in batches] == sizes
    assert [int((batch >= 200).sum()) for batch in batches] == [22] * 6 + [6]
    visited = torch.cat(batches)
    assert visited[visited < 200].unique(return_counts=True)[1].max() <= 2  # 62 of 50 in all
    counts = visited[visited >= 200].unique(return_counts=True)[1]
    assert (len(counts), counts.min(), counts.max()) == (30, 4, 5)  # 138 of 30
    laps = visited[visited >= 200].split(30)
    assert torch.equal(laps[0].sort().values, extra)
    assert not torch.equal(laps[0], laps[1])
    again, other = (data.mixed_batches(own, extra, 0.7, sizes, 1, e) for e in (2, 3))
    assert torch.equal(visited, torch.cat(again))
    assert not torch.equal(visited, torch.cat(other))


@pytest.mark.parametrize(("own", "extra"), [(50, 0), (0, 30)])
def test_a_source_that_is_pruned_away_is_filled_by_the_other(own, extra):
    ids = torch.arange(50), torch.arange(200, 230)
    batches = data.mixed_batches(ids[0][:own], ids[1][:extra], 0.7, [16, 4], 0, 0)
    assert [len(batch) for batch in batches] == [16, 4]
