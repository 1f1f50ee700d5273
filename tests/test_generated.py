"""Generated images in an npz: read as saved, refused where unfit, and trained on."""
import json
import os
import zipfile

import numpy as np
import pytest
import torch
from conftest import make, no_file_over, read_only, refused, weights

import evaluate
import prune
import train
from advprune import data, files, stored


@pytest.fixture
def extra(tmp_path):
    """extra(name, n, ...): the path of an npz of generated images."""

    def save(name="extra.npz", n=40, save=np.savez, **kwargs):
        images, labels = make(n, **kwargs)
        save(tmp_path / name, image=images, label=labels)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("grey", [None, 28])
def test_npz_gives_its_images_and_labels(tmp_path, save, grey):
    images, labels = make(30, channels=1 if grey else 3)
    save(tmp_path / "a.npz", note="x", image=images[..., 0] if grey else images,
         label=labels.astype(np.uint8))
    for _ in range(2):  # decoded, and then found so
        ours, classes = stored.open_npz(tmp_path / "a.npz", images.shape[:0:-1], 10)
        assert torch.equal(ours[:], torch.from_numpy(images).permute(0, 3, 1, 2))
        assert torch.equal(classes, torch.from_numpy(labels))
        assert classes.dtype == torch.int64


def test_a_compressed_file_is_decoded_once_and_anew_when_it_changes(tmp_path, extra):
    path = extra(save=np.savez_compressed)
    stored.open_npz(path, (1, 28, 28), 10)
    cache, = tmp_path.glob(".extra.npz*")
    with open(cache, "r+b") as file:  # a mark: what is read is this file
        file.seek(-1, 2)
        file.write(b"\7")
    assert stored.open_npz(path, (1, 28, 28), 10)[0][39][0, -1, -1] == 7
    extra(save=np.savez_compressed, seed=1)
    images, _ = stored.open_npz(path, (1, 28, 28), 10)
    assert torch.equal(images[:][:, 0], torch.from_numpy(make(40, seed=1)[0][..., 0]))
    assert len(list(tmp_path.glob(".extra.npz*"))) == 1


def test_a_compressed_file_that_cannot_be_decoded_beside_itself(tmp_path, extra, capsys):
    path = extra(save=np.savez_compressed)
    with no_file_over(1000):
        err = refused(train.main, ["--dataset", "synthetic", "--extra-data", path], capsys)
    assert "decoding it into" in err and "--cache-dir" in err
    assert [file.name for file in tmp_path.iterdir()] == ["extra.npz"]


def good():
    images, labels = make()
    return {"image": images, "label": labels}


def cut(path, at):
    path.write_bytes(path.read_bytes()[:at])


def damage(path, at):
    """Change one byte of the compressed images, counted from their name in the file."""
    np.savez_compressed(path, **good())
    content = bytearray(path.read_bytes())
    content[content.index(b"image.npy") + at] ^= 255
    path.write_bytes(content)


def lie(path):
    """An image member whose header promises more than it has."""
    np.savez(path, **good())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["image.npy"] = members["image.npy"][:-5000]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


BAD = {  # what is wrong -> (how to write it, or the arrays to save; a word of the sentence)
    "missing": (lambda path: None, "there is no"),
    "a folder": (lambda path: path.mkdir(), "directory"),
    "no zip": (lambda path: path.write_text("<html>"), "zip"),
    "cut": (lambda path: (np.savez(path, **good()), cut(path, 9000)), "zip"),
    "cut in the middle": (lie, "cut short"),
    "damaged": (lambda path: damage(path, 2000), "CRC"),
    "undecodable": (lambda path: damage(path, 29), "decompressing"),  # its first byte
    "no image": ({"image": None}, "'image'"),
    "no label": ({"label": None}, "'label'"),
    "float images": ({"image": make()[0] / 255}, "float64"),
    "other size": ({"image": make(size=(32, 32))[0]}, "(20, 32, 32, 1)"),
    "other channels": ({"image": make(channels=3)[0]}, "(20, 28, 28, 3)"),
    "channels first": ({"image": np.moveaxis(make(channels=1)[0], 3, 1)}, "(20, 1, 28, 28)"),
    "counts": ({"label": make(19)[1]}, "20 images"),
    "one-hot": ({"label": np.eye(10, dtype=int)[make()[1]]}, "(20, 10)"),
    "label 10": ({"label": make()[1] + 1}, "to 10"),
    "label -1": ({"label": make()[1] - 1}, "from -1"),
    "float labels": ({"label": make()[1] * 1.0}, "float64"),
    "bool labels": ({"label": make()[1] > 3}, "bool"),
    "pickled": ({"label": np.array([os.getcwd, *range(19)], object)}, "pickled"),
    "fortran": ({"image": np.asfortranarray(make()[0].repeat(2, 0)[::2])}, "Fortran"),
    "empty": ({"image": make(0)[0], "label": make(0)[1]}, "no images"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_npz_is_one_sentence_and_writes_nothing(tmp_path, capsys, what):
    how, word = BAD[what]
    path = tmp_path / "bad.npz"
    if callable(how):
        how(path)
    else:
        np.savez(path, **{k: v for k, v in {**good(), **how}.items() if v is not None})
    before = sorted(tmp_path.rglob("*"))
    err = refused(train.main, ["--dataset", "synthetic", "--extra-data", str(path)], capsys)
    assert word in err
    assert "bad.npz" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("flags", "word"), [
    (["--extra-fraction", "0.5"], "--extra-data"), (["--skip-bad"], "folder"),
    (["--image-size", "32"], "folder"), (["--extra-data", "x", "--extra-fraction", "0"], "above"),
    (["--extra-data", "x", "--prune", "high", "--score", "running-loss"], "running-loss"),
])
def test_flags_that_would_do_nothing_are_refused(capsys, flags, word):
    assert word in refused(train.main, ["--dataset", "synthetic", *flags], capsys)


# --- training with generated images

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


def run(out, *flags):
    return train.main(["--dataset", "synthetic", "--limit", "200", "--epochs", "3", "--out",
                       str(out), *flags])


def test_training_on_generated_images_from_end_to_end(tmp_path, extra, cut_off, monkeypatch,
                                                      capsys):
    files = [extra("one.npz", 300), extra("two.npz", 100, save=np.savez_compressed, seed=1)]
    flags = ["--extra-data", os.path.relpath(files[0]), "--extra-data", files[1], "--prune",
             "high", "--p", "0.5", "--epoch", "1"]
    record = run(tmp_path / "whole", *flags)
    assert (record["n_train"], record["n_kept"]) == (600, 300)
    rows = (tmp_path / "whole/log.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[2]) for row in rows] == [200, 100, 100]
    assert 2 < float(rows[0].split(",")[3]) < 3  # the mean loss of what was visited, near ln 10
    saved = np.load(tmp_path / "whole/scores.npz")
    labels = np.concatenate([np.load(path)["label"] for path in files])
    assert np.array_equal(saved["labels"][200:], labels)  # the ids of each file in turn
    assert np.isfinite(saved["scores"]).all()

    with cut_off(2):
        run(tmp_path / "cut", *flags)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train.main(["--resume", str(tmp_path / "cut")])
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(v, whole[name]) for name, v in weights(tmp_path / "cut").items())

    assert prune.main([str(tmp_path / "whole")])["n"] == 600
    (tmp_path / "one.npz").unlink()
    capsys.readouterr()
    assert "one.npz" in refused(prune.main, [str(tmp_path / "whole"), "--p", "0.1"], capsys)
    assert evaluate.main([str(tmp_path / "whole"), "--attack", "fgsm", "--n", "20"])["n"] == 20


def test_a_compressed_file_in_a_read_only_folder_is_decoded_into_the_cache(tmp_path, extra,
                                                                           capsys):
    (tmp_path / "theirs").mkdir()
    extra("theirs/a.npz", save=np.savez_compressed)
    with read_only(tmp_path / "theirs"):
        argv = ["--dataset", "synthetic", "--extra-data", "theirs/a.npz"]
        assert "--cache-dir" in refused(train.main, argv, capsys)
        run(tmp_path / "run", "--extra-data", "theirs/a.npz", "--cache-dir", "cache")
        cached, = (tmp_path / "cache").iterdir()
        assert prune.main(["run"])["n"] == 240
        assert prune.main(["run", "--cache-dir", "other", "--p", "0.5"])["n"] == 240
        assert [path.name for path in (tmp_path / "other").iterdir()] == [cached.name]
        assert evaluate.main(["run", "--attack", "clean", "--cache-dir", "x"])["n"] == 500
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["a.npz"]


def test_resuming_with_other_generated_images_is_refused(tmp_path, extra, monkeypatch, capsys):
    path = extra(n=300)
    monkeypatch.setattr(train.models, "predict", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", "--extra-data", path)
    extra(n=290)
    capsys.readouterr()
    err = refused(train.main, ["--resume", str(tmp_path / "run")], capsys)
    assert "500 examples, but its files now have 490" in err


def test_config_of_an_older_run_still_serves(trained, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((trained() / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for name in ("extra_data", "extra_fraction", "image_size", "skip_bad"):
        del config["args"][name]
    (folder / "config.json").write_text(json.dumps(config))
    assert prune.main([str(folder)])["n"] == 600
    assert evaluate.main([str(folder), "--attack", "clean", "--n", "9"])["n"] == 9
    state = files.read_state(trained() / "state.pt")
    state["rows"].pop()  # one epoch more to train
    torch.save(state, folder / "state.pt")
    assert train.main(["--resume", str(folder)])["n_train"] == 600
