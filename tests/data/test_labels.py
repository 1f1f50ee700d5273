"""--labels: the training labels of a file, in place of the data set's own."""
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, write_images

import evaluate
import prune
import train
from advprune import data

FLAGS = ["--dataset", "synthetic", "--limit", "60", "--epochs", "2", "--width", "2"]
OWN = data.load("synthetic").labels.numpy()  # of 2,000 images
WRONG = (OWN + 1) % 10


def test_the_labels_are_the_files_and_the_test_set_keeps_its_own():
    np.save("labels.npy", WRONG.astype(np.uint8))
    np.savez("extra.npz", image=np.zeros((3, 28, 28), np.uint8), label=np.arange(3))
    dataset = data.load("synthetic", limit=60, extra=["extra.npz"], label_file="labels.npy")
    assert dataset.labels.tolist() == [*WRONG[:60], 0, 1, 2]
    assert torch.equal(dataset.test_labels, data.load("synthetic").test_labels)


def test_a_run_and_its_scores_have_the_labels_of_the_file():
    np.save("labels.npy", WRONG)
    train.main([*FLAGS, "--labels", "labels.npy", "--prune", "high", "--epoch", "1", "--out",
                "run"])
    prune.main(["run", "--out", "scored"])
    with open("scored/scores.csv") as file:
        assert [int(row["label"]) for row in csv.DictReader(file)] == WRONG[:60].tolist()
    with np.load("run/scores.npz") as file:
        assert file["labels"].tolist() == WRONG[:60].tolist()
    Path("labels.npy").unlink()  # which the test set does not need
    assert evaluate.main(["run", "--attack", "clean", "--n", "20"])["n"] == 20


def test_a_run_goes_on_with_the_same_labels_wherever_they_lie(cut_off, capsys):
    np.save("labels.npy", WRONG)
    command = [*FLAGS, "--labels", "labels.npy", "--out", "cut"]
    with cut_off(1):
        train.main(command)
    recorded = json.loads(Path("cut/config.json").read_text())
    assert recorded["settings"]["labels"] == str(Path("labels.npy").resolve())
    np.save("labels.npy", OWN)
    for argv in (command, ["--resume", "cut"]):
        said = refused(train.main, argv, capsys)
        assert "--labels is not the data that the run was trained on" in said
    np.save("moved.npy", WRONG)
    assert train.main(["--resume", "cut", "--labels", "moved.npy"])["n_train"] == 60
    assert prune.main(["cut", "--labels", "moved.npy"])["n"] == 60
    assert "--labels is not the data" in refused(prune.main, ["cut", "--out", "x"], capsys)
    first = [*FLAGS, "--labels", "moved.npy", "--prune", "high", "--score-model", "first"]
    with cut_off(1):  # in the first training
        train.main([*first, "--out", "two"])
    Path("moved.npy").rename("labels.npy")
    assert train.main(["--resume", "two", "--labels", "labels.npy"])["n_kept"] == 36


def changed(**at):
    labels = OWN.astype(at.pop("dtype", np.int64))
    for place, value in at.items():
        labels[int(place[1:])] = value
    return labels


@pytest.mark.parametrize(("content", "words"), [
    (OWN[:-1], r"each of the 2000 .* not int64 \[1999\]"),
    (OWN[:60], r"each of the 2000 .* not int64 \[60\]"),  # of those of --limit alone
    (changed(dtype=np.float64), "a whole number .* not float64"),
    (changed(dtype=np.float32, i7=np.nan), "a whole number .* not float32"),
    (OWN == 3, "a whole number .* not bool"),
    (changed(i1999=10), "has the label 10, but classes go from 0 to 9"),
    (changed(i5=-1), "has the label -1, but"),
    (np.eye(10, dtype=int)[OWN], r"not int64 \[2000, 10\]"),
    (OWN.astype(object), "is no .npy of whole numbers: Object arrays"),
    (OWN.astype(str), "a whole number .* not <U"),
    (b"path,class\n0,1\n", "is no .npy of whole numbers: "),
    (b"", "is no .npy of whole numbers: "),
    ("cut", "is no .npy of whole numbers: "),
    (None, "is no .npy of whole numbers: No such file"),
])
def test_a_bad_file_is_one_sentence_before_the_work(content, words, tmp_path, capsys):
    path = tmp_path / "labels.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif content == "cut":
        np.save(path, OWN)
        path.write_bytes(path.read_bytes()[:-100])
    elif content is not None:
        path.write_bytes(content)
    before = list(tmp_path.iterdir())
    said = refused(train.main, [*FLAGS, "--labels", str(path), "--out", "run"], capsys)
    assert re.search(words, said), said
    assert list(tmp_path.iterdir()) == before


PATHS = [f"{name}/{i}.png" for name in ("ant", "bee") for i in range(3)]
FOLDER = ["--dataset", "folder", "--data-dir", "images", "--image-size", "8", "--model",
          "mnist-net", "--width", "1", "--epochs", "1", "--labels", "labels.csv", "--out", "run"]


@pytest.fixture
def images():
    write_images(["ant", "bee"], train=3, val=3)


def write(rows, head="path,class", encoding="utf-8"):
    Path("labels.csv").write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n",
                                  encoding)


GIVEN = {path: "bee" if path == "ant/2.png" else path[:3] for path in PATHS}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # the second by a spreadsheet
def test_a_folders_labels_are_by_path(images, encoding):
    write(GIVEN.items(), encoding=encoding)  # in another order than that of the ids
    train.main(FOLDER)
    prune.main(["run", "--p", "0", "--out", "scored"])
    with open("scored/scores.csv") as file:
        assert {row["image"]: row["label"] for row in csv.DictReader(file)} == GIVEN


@pytest.mark.parametrize(("rows", "head", "words"), [
    ([*GIVEN.items()][1:], "path,class", "lacks training images: ant/0.png"),
    ([*GIVEN.items(), ("cat/9.png", "ant")], "path,class", "no training image: cat/9.png"),
    ([*GIVEN.items(), ("bee/1.png", "ant")], "path,class", "more than once: bee/1.png"),
    ([*{**GIVEN, "bee/0.png": "wasp"}.items()], "path,class", "unknown classes: wasp"),
    ([*{**GIVEN, "bee/0.png": ""}.items()], "path,class", "unknown classes: "),
    ([*GIVEN.items()], "image,label", "no CSV with the columns path and class"),
    ([], "path,class", r"lacks training images: (\w+/\d.png(, |$)){6}"),
    (None, "", "cannot be read: No such file"),
])
def test_a_bad_csv_is_one_sentence(rows, head, words, images, capsys):
    if rows is not None:
        write(rows, head)
    with pytest.raises(train.UserError, match=words):
        train.main(FOLDER)
    assert not Path("run").exists()
