"""Real data sets, where they are, and what happens where they are damaged."""
import shutil

import pytest
import torch
from torchvision import datasets

import train
from advprune import data, files


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
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dataset", "mnist", "--data-dir", str(root)])
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert len(err.strip().splitlines()) == 1
    assert "mnist cannot be read" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_order_visits_every_id_once_and_differs_by_epoch_and_seed():
    ids = torch.arange(0, 500, 3)
    keys = (1, 2), (1, 2), (1, 3), (2, 2)
    one, again, epoch, seed = (data.shuffled(ids, *key) for key in keys)
    assert torch.equal(one, again)
    assert torch.equal(one.sort().values, ids)
    assert not torch.equal(one, epoch)
    assert not torch.equal(one, seed)


def test_limit_keeps_the_first_and_the_whole_test_set():
    whole, few = data.load("synthetic"), data.load("synthetic", limit=7)
    assert torch.equal(few.images, whole.images[:7])
    assert len(few.test_labels) == len(whole.test_labels)


def test_files_appear_whole_or_not_at_all(tmp_path):
    def broken(content, file):
        file.write(content)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_saved(tmp_path / "scores.npz", broken, b"half")
    assert list(tmp_path.iterdir()) == []
    files.write(tmp_path / "a", "one")
    files.write(tmp_path / "a", "two")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "two")]


@pytest.mark.slow
def test_cifar10_line_of_the_readme_completes(real_data, tmp_path):
    record = train.main(["--dataset", "cifar10", "--prune", "high", "--p", "0.4", "--epoch", "3",
                         "--epochs", "5", "--limit", "256", "--width", "8", "--data-dir",
                         real_data("cifar-10-batches-py"), "--out", str(tmp_path / "run")])
    assert record["n_kept"] == 256 - round(0.4 * 256)
