"""Folders of images a class: found, decoded once; what cannot be used is named."""
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import read_only, refused
from PIL import Image
from torchvision import datasets, transforms

import evaluate
import prune
import train
from advprune import data, image_folder, run
from advprune.errors import UserError


@pytest.fixture
def root(tmp_path):
    """A folder of 24 + 9 images of odd sizes, formats and modes, in three classes."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for c, name in enumerate(("ant", "bee", "cow")):
            place = tmp_path / "images" / part / name / ("deep" if name == "cow" else "")
            place.mkdir(parents=True)
            for i in range(count):
                small = generator.integers(256, size=(7, 5 + i, 3), dtype=np.uint8) // 2 + 40 * c
                image = Image.fromarray(small.astype(np.uint8)).resize((30 + 9 * i, 50))
                image = image.convert(("L", "P", "RGBA", "RGB")[i % 4])
                image.save(place / f"{i}.{'png' if i % 2 else 'bmp'}")
    return tmp_path / "images"


def files(root):
    return sorted(path.name for path in root.glob(".*") if path.suffix != ".lock")


def test_images_are_those_of_torchvision(root):
    dataset = data.load("folder", root, image_size=20)
    assert dataset.images.shape == (24, 3, 20, 20)
    assert (len(dataset.test_labels), dataset.classes) == (9, ["ant", "bee", "cow"])
    fit = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(20),
                              transforms.PILToTensor()])
    theirs = datasets.ImageFolder(root / "train", fit)
    place = {path: i for i, (path, _) in enumerate(theirs.samples)}
    index = json.loads(next(root.glob(".advprune-train-20-*.json")).read_text())
    assert dataset.paths == index["paths"]
    order = [place[str(root / "train" / path)] for path in dataset.paths]
    assert sorted(order) == list(range(24))
    assert len(dataset.labels[:8].unique()) == 3  # the first are not all of one class
    for i, j in enumerate(order):
        image, label = theirs[j]
        assert torch.equal(dataset.images[i], image)
        assert dataset.labels[i] == label
    limited = data.load("folder", root, 5, image_size=20)
    assert torch.equal(limited.images[:], dataset.images[:5])
    assert limited.paths == dataset.paths[:5]


def test_a_folder_is_decoded_once_and_anew_when_it_changes(root, monkeypatch):
    first = data.load("folder", root, image_size=20).images[:]
    once = files(root)
    assert len(once) == 4
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_decode", lambda *_: 1 / 0)
        assert torch.equal(data.load("folder", root, image_size=20).images[:], first)
        with pytest.raises(ZeroDivisionError):
            data.load("folder", root, image_size=24)
    shutil.copy(root / "train/ant/1.png", root / "train/bee/1.png")
    assert not torch.equal(data.load("folder", root, image_size=20).images[:], first)
    assert len(files(root)) == 4
    assert len(set(files(root)) & set(once)) == 2  # val's
    (root / "train/ant/7.png").rename(root / "train/ant/8.png")
    data.load("folder", root, image_size=20)
    paths = json.loads(next(root.glob(".advprune-train-20-*.json")).read_text())["paths"]
    assert "ant/8.png" in paths


def flags(root, *more):
    return ["--dataset", "folder", "--data-dir", str(root), "--image-size", "16", *more]


def test_broken_images_are_named_or_left_out(root, tmp_path, capsys):
    whole = (root / "train/bee/1.png").read_bytes()
    (root / "train/bee/1.png").write_bytes(whole[:len(whole) // 2])
    (root / "train/cow/deep/2.bmp").write_text("<html>")
    (root / "train/ant/link.png").symlink_to("nowhere")
    err = refused(train.main, flags(root, "--out", "run"), capsys)
    for word in ("3 of the 25", "bee/1.png", "cow/deep/2.bmp", "ant/link.png", "--skip-bad"):
        assert word in err
    assert not (tmp_path / "run").exists()
    dataset = data.load("folder", root, image_size=16, skip_bad=True)
    assert "3 of the 25" in capsys.readouterr().err
    assert len(dataset.labels) == len(dataset.images) == 22
    decoded = np.load(next(root.glob(".advprune-train-16-*.npy")))  # a plain npy for others, too
    assert np.array_equal(decoded[21].transpose(2, 0, 1), dataset.images[21])
    assert len(decoded) == 22
    index = json.loads(next(root.glob(".advprune-train-16-*.json")).read_text())
    wanted = [["ant", "bee", "cow"].index(path.split("/")[0]) for path in index["paths"]]
    assert dataset.labels.tolist() == wanted
    refused(train.main, flags(root), capsys)  # what --skip-bad left behind allows nothing


def test_many_broken_images_are_counted(root, capsys):
    for path in (root / "train").rglob("*.*"):
        path.write_text("")
    err = refused(train.main, flags(root), capsys)
    assert err.count(".png") + err.count(".bmp") == 10
    assert "and 14 more" in err
    assert "none of the 24" in refused(train.main, flags(root, "--skip-bad"), capsys)


@pytest.mark.parametrize(("break_it", "word"), [
    (shutil.rmtree, "no images"),
    (lambda root: shutil.rmtree(root / "val"), "val holds no images"),
    (lambda root: shutil.rmtree(root / "train"), "train holds no images"),
    (lambda root: [path.unlink() for path in (root / "val").rglob("*.*")], "val holds no images"),
    (lambda root: (root / "train/bee").rename(root / "train/wasp"), "2 classes"),
    (lambda root: (root / "val/dog").mkdir(), "'dog'"),
])
def test_unfit_folders_are_one_sentence(root, capsys, break_it, word):
    break_it(root)
    assert word in refused(train.main, flags(root), capsys)


def test_hidden_files_are_skipped_and_others_are_counted(root, capsys):
    wanted = data.load("folder", root, image_size=16).images[:]
    shutil.copytree(root / "train/ant", root / "train/.ipynb_checkpoints")
    shutil.copytree(root / "train/ant", root / "train/bee/.thumbnails")
    (root / "train/cow/._1.png").write_bytes(b"of macOS")
    capsys.readouterr()
    dataset = data.load("folder", root, image_size=16)
    assert dataset.classes == ["ant", "bee", "cow"]
    assert torch.equal(dataset.images[:], wanted)
    assert capsys.readouterr().err == ""
    for name in ("ant/a.svg", "cow/deep/b.SVG", "bee/c.heic", "bee/README", "list.csv"):
        (root / "train" / name).write_text("")
    assert torch.equal(data.load("folder", root, image_size=16).images[:], wanted)
    line, = capsys.readouterr().err.splitlines()
    for said in (str(root / "train"), "5 in all", "2 .svg", "1 .heic",
                 "1 without an extension", "1 outside the class folders"):
        assert said in line


def test_a_folder_of_other_files_alone_says_what_they_are(root, capsys):
    for path in (root / "val").rglob("*.*"):
        path.rename(path.with_suffix(".heic"))
    (root / "val/0.png").write_text("")
    err = refused(train.main, flags(root), capsys)
    assert "but other files: 9 .heic, 1 outside the class folders;" in err


@pytest.mark.parametrize("empty", ["no file", "no image", "no readable image"])
def test_classes_without_images_are_said(root, capsys, empty):
    def clear(part):
        for path in (root / part / "bee").glob("*.*"):
            path.write_text("") if empty == "no readable image" else path.unlink()
        if empty == "no image":
            (root / part / "bee/note.txt").write_text("")

    clear("val")
    assert data.load("folder", root, image_size=16, skip_bad=True).classes[1] == "bee"
    assert "val has no images of bee" in capsys.readouterr().err
    clear("train")
    with pytest.raises(UserError, match="train has no images of bee"):
        data.load("folder", root, image_size=16, skip_bad=True)


def test_labels_follow_the_class_folders(root):
    """Also where no image has changed, so that the decoded files are there."""
    for part in ("train", "val"):
        shutil.rmtree(root / part / "bee")
        (root / part / "bee").mkdir()
    with pytest.raises(UserError, match="no images of bee"):
        data.load("folder", root, image_size=16)
    for part in ("train", "val"):
        (root / part / "bee").rmdir()
    assert sorted(set(data.load("folder", root, image_size=16).labels.tolist())) == [0, 1]


def test_a_run_on_a_folder_from_end_to_end(root, tmp_path, capsys):
    record = train.main(flags(root, "--epochs", "2", "--width", "2", "--prune", "high", "--epoch",
                              "1", "--out", str(tmp_path / "run")))
    assert (record["n_train"], record["n_kept"]) == (24, 14)
    config = run.read_config("run")
    used = config["settings"]
    assert (config["network"]["size"], used.pad, used.epsilon) == (16, 2, 4 / 255)
    assert prune.main([str(tmp_path / "run")])["n"] == 24
    shutil.rmtree(root / "train")
    for path in root.glob(".advprune-train-*"):
        path.unlink()
    of_run = evaluate.main([str(tmp_path / "run"), "--attack", "fgsm", "--n", "9"])
    alone = evaluate.main(["--weights", str(tmp_path / "run/model.safetensors"), "--width", "2",
                           *flags(root), "--attack", "fgsm", "--n", "9"])
    for key in ("n", "epsilon", "clean_accuracy", "robust_accuracy"):
        assert of_run[key] == alone[key]
    shutil.rmtree(root / "val/cow")
    capsys.readouterr()
    err = refused(evaluate.main, [str(tmp_path / "run"), "--attack", "clean"], capsys)
    assert "3 classes" in err


def test_the_same_command_continues_what_followed_from_the_images(root, cut_off, capsys):
    """24 images are one batch; 1,000 epochs would be 1,000 updates."""
    command = flags(root, "--model", "mnist-net", "--out", "run")
    with cut_off(1):
        train.main(command)
    used = run.read_config("run")["settings"]
    assert (used.batch_size, used.epochs) == (32, 1000)
    for more in (command, ["--resume", "run"]):
        with cut_off(2):
            train.main(more)
    for other in ("--epochs", "1000"), ("--batch-size", "32"):
        assert f"({other[0][2:].replace('-', '_')} differ)" in refused(
            train.main, [*command, *other], capsys)


def test_a_read_only_folder_is_used_by_way_of_a_cache(root, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    with read_only(root):
        err = refused(train.main, flags(root), capsys)
        assert "cannot write" in err and "--cache-dir" in err
        train.main(flags(root, "--epochs", "2", "--width", "2", "--cache-dir", "cache/deep",
                         "--out", "run"))
        assert run.read_config("run")["cache_dir"] == str(tmp_path / "cache/deep")
        cached = files(tmp_path / "cache/deep")
        assert len(cached) == 4
        assert prune.main(["run"])["n"] == 24  # both find the run's own
        of_run = evaluate.main(["run", "--attack", "clean"])
        assert files(tmp_path / "cache/deep") == cached
        prune.main(["run", "--cache-dir", "cache/other", "--p", "0.5"])
        evaluate.main(["run", "--attack", "clean", "--cache-dir", "cache/third"])
        assert [len(files(tmp_path / "cache" / name)) for name in ("other", "third")] == [4, 2]
        alone = evaluate.main(["--weights", "run/model.safetensors", "--width", "2",
                               *flags(root), "--attack", "clean", "--cache-dir", "cache/fourth"])
        assert alone["clean_accuracy"] == of_run["clean_accuracy"]
    assert files(root) == []
