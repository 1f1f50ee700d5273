"""Images that stay in files: as a tensor, read in place, refused where unfit, trained on."""
import os
import zipfile

import numpy as np
import pytest
import torch
from conftest import make, read_only, refused, same

import evaluate
import prune
import train
from advprune import data, generated_images, image_files, reference
from advprune.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def parts(tmp_path):
    """(Stored, Joined, tensor of what each holds): 7x5 images in files at odd offsets."""
    arrays = [make(n, (7, 5), 3, seed=n)[0] for n in (11, 1, 8)]
    files = []
    for i, array in enumerate(arrays):
        (tmp_path / f"{i}.bin").write_bytes(b"x" * 13 + array.tobytes() + b"tail")
        files.append(image_files.Stored(tmp_path / f"{i}.bin", 13, array.shape))
    tensors = [torch.from_numpy(array).permute(0, 3, 1, 2).contiguous() for array in arrays]
    joined = image_files.Joined([files[0], tensors[1], files[2]])
    return (files[0], tensors[0]), (joined, torch.cat(tensors))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("kind", [0, 1])
def test_files_read_like_a_tensor(parts, kind):
    images, wanted = parts[kind]
    n = len(wanted)
    assert (images.shape, images.dtype, len(images)) == (wanted.shape, wanted.dtype, n)
    generator = torch.Generator().manual_seed(0)
    asked = [3, n - 1, slice(None), slice(4, n - 2), slice(2, n, 3), torch.arange(3, 9),
             torch.arange(n)[1::3],
             torch.randint(n, (50,), generator=generator), torch.tensor([], dtype=torch.int64)]
    for at in asked:
        assert torch.equal(images[at], wanted[at])
        assert images[at].is_contiguous()
    for ours, theirs in zip(images.split(6), wanted.split(6), strict=True):
        assert torch.equal(ours, theirs)
    for outside in (n, -1, torch.tensor([0, n]), torch.tensor([-1]), torch.ones(n).bool()):
        with pytest.raises(IndexError):
            images[outside]


def test_narrowed_files_end_where_they_should(parts):
    images, wanted = parts[0]
    few = images.narrow(0, 2, 5).narrow(0, 1, 3)
    assert torch.equal(few[:], wanted[3:6])
    assert len(few) == 3
    with pytest.raises(IndexError):
        few[3]


def test_a_file_cut_short_is_no_crash(parts):
    images, _ = parts[0]
    os.truncate(images.file.name, 200)
    with pytest.raises(UserError, match="cut short"):
        images[10]


@pytest.mark.parametrize("kernels", [True, False])
def test_a_batch_from_files_is_the_batch_from_memory(parts, monkeypatch, kernels):
    if not kernels:
        monkeypatch.setattr(torch.ops.advprune, "augment", reference.augment)
    joined, wanted = parts[1]
    labels = torch.zeros(len(wanted), dtype=torch.int64)
    memory, files = (data.Dataset("x", images, labels, images, labels, ["0"], len(labels))
                     for images in (wanted, joined))
    ids = torch.randperm(len(labels))[:13]
    for channels_last in (False, True):
        key = ids, 5, 2, 2, True, channels_last
        one, other = memory.batch(*key), files.batch(*key)
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.slow
def test_many_images_take_no_memory(tmp_path):
    """600 MB of 32x32x3: streamed and gathered from, with the process no larger than before."""
    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    n, noise = 200_000, np.random.default_rng(0).integers(256, size=2**24, dtype=np.uint8)
    with open(tmp_path / "images", "wb") as file:
        while file.tell() < n * 3072:
            file.write(noise)
    stored = image_files.Stored(tmp_path / "images", 0, (n, 32, 32, 3))
    before, largest, total = resident(), 0, 0
    for batch in stored.split(1000):
        total += len(batch)
        largest = max(largest, resident())
    assert total == n
    for _ in range(500):
        stored[torch.randint(n, (128,))]
    assert max(largest, resident()) - before < 100 * 1024
    os.unlink(tmp_path / "images")


# --- generated images in an npz

@pytest.fixture
def extra(tmp_path):
    """extra(name, n, ...): the path of an npz of generated images."""

    def save(name="extra.npz", n=40, save=np.savez, **kwargs):
        images, labels = make(n, **kwargs)
        save(tmp_path / name, image=images, label=labels)
        return str(tmp_path / name)

    return save


def names(folder):
    """What is in a folder, except locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("grey", [None, 28])
def test_npz_gives_its_images_and_labels(tmp_path, save, grey):
    pixels, labels = make(30, channels=1 if grey else 3)
    save(tmp_path / "a.npz", note="x", image=pixels[..., 0] if grey else pixels,
         label=labels.astype(np.uint8))
    for _ in range(2):  # decoded, and then found so
        ours, classes = generated_images.open_npz(tmp_path / "a.npz", pixels.shape[:0:-1], 10)
        assert torch.equal(ours[:], torch.from_numpy(pixels).permute(0, 3, 1, 2))
        assert torch.equal(classes, torch.from_numpy(labels))
        assert classes.dtype == torch.int64


def test_a_compressed_file_is_decoded_once_and_anew_when_it_changes(tmp_path, extra):
    path = extra(save=np.savez_compressed)
    generated_images.open_npz(path, (1, 28, 28), 10)
    cache, = tmp_path.glob(".extra.npz*.npy")
    with open(cache, "r+b") as file:  # a mark: what is read is this file
        file.seek(-1, 2)
        file.write(b"\7")
    assert generated_images.open_npz(path, (1, 28, 28), 10)[0][39][0, -1, -1] == 7
    extra(save=np.savez_compressed, seed=1)
    found, _ = generated_images.open_npz(path, (1, 28, 28), 10)
    assert torch.equal(found[:][:, 0], torch.from_numpy(make(40, seed=1)[0][..., 0]))
    assert len(list(tmp_path.glob(".extra.npz*.npy"))) == 1


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
    before = names(tmp_path)
    err = refused(train.main, ["--dataset", "synthetic", "--extra-data", str(path)], capsys)
    assert word in err
    assert "bad.npz" in err
    assert names(tmp_path) == before


# --- training with generated images

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
    assert same(tmp_path / "cut", tmp_path / "whole")

    assert prune.main([str(tmp_path / "whole")])["n"] == 600
    (tmp_path / "one.npz").unlink()
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
        cached, = names(tmp_path / "cache")
        assert prune.main(["run"])["n"] == 240
        assert prune.main(["run", "--cache-dir", "other", "--p", "0.5"])["n"] == 240
        assert names(tmp_path / "other") == [cached]
        assert evaluate.main(["run", "--attack", "clean", "--cache-dir", "x"])["n"] == 500
    assert names(tmp_path / "theirs") == ["a.npz"]
