"""Where the data of a run lie may change; what they are may not."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, write_images
from PIL import Image

import evaluate
import prune
import train
from advprune import data, image_files

FLAGS = ["--dataset", "folder", "--image-size", "8", "--model", "mnist-net", "--width", "2",
         "--epochs", "2"]


@pytest.fixture
def images(tmp_path):
    """A folder of 12 + 6 images in two classes."""
    write_images(["ant", "bee"], train=6, val=3)
    return tmp_path / "images"


@pytest.fixture
def cut(images, cut_off):
    """A run on these images that was cut off after an epoch."""
    with cut_off(1):
        train.main([*FLAGS, "--data-dir", str(images), "--out", "cut"])
    return "cut"


@pytest.mark.parametrize("how", ["resume", "same"])
def test_a_run_goes_on_where_its_data_were_moved_to(images, cut, how):
    images.rename("moved")
    argv = ["--resume", cut] if how == "resume" else [*FLAGS, "--out", cut]
    assert train.main([*argv, "--data-dir", "moved"])["n_train"] == 12
    assert prune.main([cut, "--data-dir", "moved"])["n"] == 12
    assert evaluate.main([cut, "--data-dir", "moved", "--attack", "clean"])["n"] == 6


def test_generated_images_may_be_moved_too(capsys, cut_off):
    pixels = np.random.default_rng(0).integers(256, size=(30, 28, 28), dtype=np.uint8)
    for name, images in (("extra.npz", pixels), ("other.npz", pixels // 2)):
        np.savez(name, image=images, label=np.arange(30) % 10)
    with cut_off(1):
        train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "2", "--out", "cut",
                    "--extra-data", "extra.npz"])
    Path("extra.npz").rename("moved.npz")
    resume = ["--resume", "cut", "--extra-data"]
    assert "is not the data" in refused(train.main, [*resume, "other.npz"], capsys)
    assert train.main([*resume, "moved.npz"])["n_train"] == 70
    assert "is not the data" in refused(prune.main, ["cut", "--extra-data", "other.npz"], capsys)
    assert prune.main(["cut", "--extra-data", "moved.npz"])["n"] == 70


def other_pixel(images, part):
    path = images / part / "bee/2.png"
    with Image.open(path) as image:
        image.putpixel((3, 4), (1, 2, 3))
        image.save(path)


def other_labels(images, part):
    for old, new in (("ant", "x"), ("bee", "ant"), ("x", "bee")):
        (images / part / old).rename(images / part / new)


def other_images(images, part):
    """As many of each class."""
    (images / part / "ant/0.png").unlink()
    Image.new("RGB", (8, 8)).save(images / part / "ant/new.png")


@pytest.mark.parametrize("change", [other_pixel, other_labels, other_images])
@pytest.mark.parametrize("part", ["train", "val"])
def test_other_data_of_the_same_size_are_refused(images, cut, capsys, change, part):
    shutil.copytree(images, "whole")
    change(images, part)
    for argv in (["--resume", cut], [*FLAGS, "--data-dir", str(images), "--out", cut]):
        err = refused(train.main, argv, capsys)
        assert f"{images} is not the data that the run was trained on" in err
        assert ("train" if part == "train" else "test") + " images or labels differ" in err
    train.main(["--resume", cut, "--data-dir", "whole"])
    refuses, works = (prune, evaluate) if part == "train" else (evaluate, prune)
    for argv in ([cut], [cut, "--data-dir", str(images)]):
        assert f"{images} is not the data" in refused(refuses.main, argv, capsys)
    assert works.main([cut, "--p", "0.5"] if works is prune else [cut, "--attack", "clean"])


@pytest.mark.parametrize("change", [other_pixel, other_labels, other_images])
def test_an_evaluation_of_weights_is_of_the_same_data(images, capsys, change):
    train.main([*FLAGS, "--data-dir", str(images), "--out", "run"])
    argv = ["--weights", "run/model.safetensors", *FLAGS[:-2], "--attack", "clean", "--data-dir"]
    first = evaluate.main([*argv, str(images)])
    shutil.copytree(images, "moved")
    assert evaluate.main([*argv, "moved"]) == first
    change(images, "val")
    assert "exists already and is not of this command" in refused(
        evaluate.main, [*argv, str(images)], capsys)


def test_the_checksum_is_the_same_in_files_and_in_memory(images, monkeypatch):
    stored = data.load("folder", images, image_size=8)
    wanted = stored.checksum("train"), stored.checksum("test")
    monkeypatch.setattr(image_files, "PIECE", 500)  # bytes: two images and a half
    assert (stored.checksum("train"), stored.checksum("test")) == wanted
    parts = stored.images.narrow(0, 0, 5), stored.images[5:]
    stored.images, stored.test_images = image_files.Joined(parts), stored.test_images[:]
    assert (stored.checksum("train"), stored.checksum("test")) == wanted
    stored.labels = torch.flip(stored.labels, [0])
    assert stored.checksum("train") != wanted[0]
