"""Full disks and read-only ones, on real file systems: one sentence, nothing torn, all goes on."""
import contextlib
import resource
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, ended, same

import evaluate
import prune
import train
from advprune import checkpoint, files

FLAGS = ["--dataset", "synthetic", "--limit", "80", "--width", "2", "--epochs", "3", "--prune",
         "high", "--p", "0.4", "--epoch", "1"]


class Disk:
    """A small file system in memory."""

    def __init__(self, place):
        self.place, self.filler = place, place / "filler"

    def mount(self, options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(self.place)],
                              capture_output=True).returncode == 0

    def fill(self):
        with contextlib.suppress(OSError), open(self.filler, "wb", buffering=0) as file:
            while file.write(b"x" * 4096) == 4096:
                pass

    def fill_before(self, monkeypatch, name):
        """Fill it as the first file called so is about to be written."""
        writing = files.writing

        def full(path):
            if str(path).endswith(name):
                self.fill()
            return writing(path)

        monkeypatch.setattr(files, "writing", full)

    def read_only(self):
        subprocess.run(["mount", "-o", "remount,ro", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    made.place.mkdir()
    try:
        mounted = made.mount("size=3m")
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield made
    subprocess.run(["umount", "-l", str(made.place)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train.main([*FLAGS, "--out", str(out)])
    return out


def refused(main, argv, capsys):
    """The sentence on stderr with which this command line ends, with exit code 2."""
    code, _, said = ended(main, argv, capsys)
    assert code == 2, said
    return said[-1]


def parts(place):
    return [path for path in place.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize("name", ["config.json", "log.csv", "state.pt", "scores.npz", "pruned.png",
                                  "model.safetensors", "train.json"])
def test_training_goes_on_once_there_is_room(name, disk, whole, monkeypatch, capsys):
    run = disk.place / "run"
    with monkeypatch.context() as patch:
        disk.fill_before(patch, name)
        said = refused(train.main, [*FLAGS, "--out", run], capsys)
    assert f"{name} cannot be written" in said
    assert "No space left on device" in said
    assert not parts(disk.place)
    advice = f"train.py --resume {run} continues the run"
    assert ("nothing was written yet" if name == "config.json" else advice) in said
    disk.filler.unlink()
    train.main([*FLAGS, "--out", str(run)])
    assert same(run, whole)
    with np.load(run / "scores.npz") as mine, np.load(whole / "scores.npz") as theirs:
        assert np.array_equal(mine["kept"], theirs["kept"])


def test_the_checkpoint_before_serves_where_the_newest_did_not_fit(disk, whole, monkeypatch,
                                                                   capsys):
    run, write, calls = disk.place / "run", checkpoint.State.write, []

    def second(state, content):
        calls.append(state)
        if len(calls) == 2:
            disk.fill()
        write(state, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.State, "write", second)
        refused(train.main, [*FLAGS, "--out", run], capsys)
    assert refused(train.main, [*FLAGS, "--out", run], capsys)  # still full
    disk.filler.unlink()
    train.main([*FLAGS, "--out", str(run)])
    assert same(run, whole)


def test_evaluation_goes_on_once_there_is_room(disk, whole, monkeypatch, capsys):
    flags = [str(whole), "--attack", "fgsm,pgd", "--n", "20", "--batch-size", "10"]
    wanted = evaluate.main([*flags, "--out", "whole.json"])
    flags += ["--save", str(disk.place / "a.npz"), "--out"]
    for name in (".state", "a.npz", "out.json"):
        with monkeypatch.context() as patch:
            disk.fill_before(patch, name)
            said = refused(evaluate.main, [*flags, disk.place / "out.json"], capsys)
        assert "No space left on device" in said
        assert "the same command continues the evaluation" in said
        assert not parts(disk.place)
        assert not (disk.place / "out.json").exists()
        disk.filler.unlink()
    record = evaluate.main([*flags, str(disk.place / "out.json")])
    assert record["per_attack"] == wanted["per_attack"]


@pytest.mark.parametrize("name", [".state-0of1", "scores.npz", "scores.csv", "pruned.png",
                                  "prune.json"])
def test_scoring_goes_on_once_there_is_room(name, disk, whole, monkeypatch, capsys):
    flags = [str(whole), "--score", "clean-loss", "--out", str(disk.place / "scored")]
    with monkeypatch.context() as patch:
        disk.fill_before(patch, name)
        said = refused(prune.main, flags, capsys)
    assert "No space left on device" in said
    assert "the same command continues the scoring" in said
    assert not parts(disk.place)
    assert not (disk.place / "scored" / "prune.json").exists()
    disk.filler.unlink()
    prune.main(flags)
    assert (disk.place / "scored" / "prune.json").exists()


def test_a_file_size_limit_is_one_sentence_and_resuming_agrees(whole, tmp_path):
    """RLIMIT_FSIZE, as `ulimit -f` sets it: a real process of its own."""
    run = tmp_path / "run"
    limit = (whole / "scores.npz").stat().st_size // 2
    ended = subprocess.run(
        [sys.executable, ROOT / "train.py", *FLAGS, "--out", run], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert ended.returncode == 2, ended.stderr
    assert "File too large" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    train.main([*FLAGS, "--out", str(run)])
    assert same(run, whole)


def test_a_read_only_run_is_evaluated_and_scored_into_another_folder(disk, whole, tmp_path,
                                                                    capsys):
    run = disk.place / "run"
    train.main([*FLAGS, "--out", str(run)])
    disk.read_only()
    evaluate.main([str(run), "--attack", "fgsm", "--n", "20", "--out", str(tmp_path / "e.json")])
    prune.main([str(run), "--score", "clean-loss", "--out", str(tmp_path / "scored")])
    assert (tmp_path / "scored" / "scores.npz").exists()
    assert train.main([*FLAGS, "--out", str(run)])["n_kept"] == 48  # it is finished
    for main in (prune.main, evaluate.main):
        assert "Read-only file system" in refused(main, [run], capsys)
