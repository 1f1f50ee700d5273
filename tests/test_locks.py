"""Two processes of one run, and what killed processes leave: locks, parts, first epochs."""
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import killing
import numpy as np
import pytest
from PIL import Image

import prune
import reproduce
import train
from advprune import files, folder, locks, runs, stored

FLAGS = ["--dataset", "digits", "--limit", "400", "--epochs", "4"]


def refused(capsys, main, argv, words):
    """It exits with 2 and one sentence that has these words."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert stopped.value.code == 2 and out == ""
    assert len(lines) == 1 and words in lines[0]


@pytest.fixture
def begun(forks, tmp_path):
    """begun(script, argv, happened): the processes of the script, halted once happened()."""
    alive = []

    def begin(name, argv, happened):
        command = killing.Command(forks, name, tmp_path / "output")
        started = command.start(*argv)
        killing.until(happened, started[0])
        os.kill(started[0].pid, signal.SIGSTOP)
        alive.extend(started)
        assert happened() and started[0].exitcode is None
        return command, started

    yield begin
    killing.kill(alive)


def go_on(command, started):
    os.kill(started[0].pid, signal.SIGCONT)
    command.wait(started)


# --- locks

def test_a_second_resume_of_a_living_run_is_refused(begun, forks, tmp_path, capsys):
    whole = killing.Command(forks, "train", tmp_path / "output-whole")  # with as many threads
    whole.wait(whole.start(*FLAGS, "--out", str(tmp_path / "whole")))
    run = tmp_path / "run"
    command, started = begun("train", [*FLAGS, "--out", str(run)], (run / "state.pt").exists)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    refused(capsys, train.main, ["--resume", str(run)], "in use by another process")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    go_on(command, started)
    assert killing.results(run) == killing.results(tmp_path / "whole")
    assert not (run / ".lock").exists()


def test_a_lock_dies_with_its_owner(begun, tmp_path):
    run = tmp_path / "run"
    _, started = begun("train", [*FLAGS, "--out", str(run)], (run / "state.pt").exists)
    assert killing.kill(started) and (run / ".lock").exists()
    assert train.main(["--resume", str(run)])["epochs"] == 4


def test_a_lock_is_of_the_file_that_its_path_names(tmp_path, monkeypatch):
    """Its owner deletes the file after another has opened it: that one must lock the new file."""
    path, flock, taken = tmp_path / "lock", locks.fcntl.flock, []

    def flock_after_the_owner_ended(*args):
        if not taken:
            taken.append(path.unlink())
        return flock(*args)

    monkeypatch.setattr(locks.fcntl, "flock", flock_after_the_owner_ended)
    with locks.take(path) as file:
        assert os.path.samestat(os.fstat(file.fileno()), path.stat())
        assert locks.take(path) is None


def test_a_second_reproduce_of_a_study_is_refused(begun, tmp_path, capsys):
    study = ["digits", "--seeds", "1", "--n-eval", "5"]
    root = Path("runs/digits")
    _, started = begun("reproduce", study, (root / "full-0/config.json").exists)
    refused(capsys, reproduce.main, study, "in use by another process")
    assert (root / "full-0/config.json").exists()
    killing.kill(started)
    with locks.take(root / ".lock") as file:
        assert file


def test_a_second_scoring_is_refused_and_the_first_ends(begun, trained, tmp_path, capsys):
    run = trained()
    argv = [str(run), "--score", "margin", "--out", str(tmp_path / "scored")]
    command, started = begun("prune", argv, lambda: list(tmp_path.glob("scored*.lock")))
    refused(capsys, prune.main, argv, "in use by another process")
    go_on(command, started)
    assert (tmp_path / "scored/pruned.png").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "scored"]


@pytest.mark.parametrize("written", ["scores.npz", "pruned.png"])
def test_a_killed_scoring_is_no_obstacle_to_the_same_command(begun, trained, tmp_path, written):
    argv = [str(trained()), "--score", "clean-loss", "--out", str(tmp_path / "scored")]
    _, started = begun("prune", argv, (tmp_path / "scored/scores.npz").exists)
    killing.kill(started)
    prune.main(argv)
    assert sorted(path.name for path in (tmp_path / "scored").iterdir()) == [
        "pruned.png", "scores.npz"]


# --- runs whose first epoch had not ended

def first_epoch(begun, run, monkeypatch=None):
    flags = ["--dataset", "synthetic", "--limit", "2000", "--epochs", "2"]
    _, started = begun("train", [*flags, *(["--out", str(run)] if run else [])],
                       Path(run or "runs/synthetic-rs-fgsm-s0", "config.json").exists)
    return flags, started


def test_a_living_run_in_its_first_epoch_is_not_taken(begun, tmp_path, capsys):
    run = tmp_path / "run"
    flags, _ = first_epoch(begun, run)
    before = sorted(run.iterdir())
    assert not (run / "state.pt").exists()
    refused(capsys, train.main, [*flags, "--out", str(run)], "exists already")
    assert sorted(run.iterdir()) == before


def test_a_killed_run_in_its_first_epoch_is_no_obstacle(begun, tmp_path):
    flags, started = first_epoch(begun, None)
    killing.kill(started)
    assert not Path("runs/synthetic-rs-fgsm-s0/state.pt").exists()
    assert train.main(flags)["run"] == "runs/synthetic-rs-fgsm-s0"


@pytest.mark.parametrize("files", [["config.json"], [".lock", "mine.txt"], ["scores.npz"],
                                   [".lock", "config.json", "state.previous.pt"], []])
def test_other_folders_are_never_taken(tmp_path, capsys, files):
    """Neither someone's folder with a config.json of its own, nor a run with an epoch."""
    (tmp_path / "run").mkdir()
    for name in files:
        (tmp_path / "run" / name).write_text("{}")
    refused(capsys, train.main, [*FLAGS, "--out", "run"], "exists already")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(files)


def test_a_run_is_locked_from_the_moment_that_it_exists(tmp_path, monkeypatch):
    def killed(old, new):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.create(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert (runs.create(tmp_path / "run") / ".lock").exists()


# --- parts of files

def part(path, process, host=None):
    part = path.with_name(f".{path.name}.{host or socket.gethostname()}.{process}.part")
    part.write_text("half")
    return part


@pytest.fixture
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_parts_of_dead_processes_go_at_the_next_write_and_no_others(tmp_path, dead):
    path = tmp_path / "a[b].json"
    gone = part(path, dead)
    stay = [part(path, os.getppid()), part(path, dead, "another-host"),
            part(tmp_path / "other.json", dead), part(path, "odd")]
    files.write(path, "whole")
    assert not gone.exists() and all(left.exists() for left in stay)
    assert path.read_text() == "whole"


def test_parts_in_a_run_go_when_it_is_resumed(tmp_path, dead, cut_off):
    with cut_off(1):
        train.main([*FLAGS, "--out", "run"])
    gone = [part(tmp_path / "run" / name, dead) for name in ("state.pt", "network.py")]
    stays = part(tmp_path / "run" / "eval.json", os.getppid())
    train.main(["--resume", "run"])
    assert not any(path.exists() for path in gone) and stays.exists()


def killed_decoding(forks, tmp_path, flags):
    """Kill a train.py while it decodes; the part that it leaves."""
    command = killing.Command(forks, "train", tmp_path / "output")
    started = command.start(*flags, "--epochs", "1", "--out", str(tmp_path / "run"))
    killing.until(lambda: list(tmp_path.glob("..*.npy.*.part")), started[0])
    killing.kill(started)
    (left,) = tmp_path.glob("..*.npy.*.part")
    return left


@pytest.mark.parametrize("changed", [False, True])
def test_parts_of_a_killed_decoding_of_an_npz_go(forks, tmp_path, changed):
    path = tmp_path / "extra.npz"
    np.savez_compressed(path, image=np.zeros((60_000, 28, 28), np.uint8),
                        label=np.zeros(60_000, np.int64))
    left = killed_decoding(forks, tmp_path, ["--dataset", "digits", "--extra-data", str(path)])
    if changed:  # so that what is decoded now has another name
        os.utime(path, (1, 1))
    stored.open_npz(path, (1, 28, 28), 10)
    assert not left.exists() and not list(tmp_path.glob("..*"))


@pytest.mark.parametrize("changed", [False, True])
def test_parts_of_a_killed_decoding_of_a_folder_go(forks, tmp_path, changed):
    for part_of, n in (("train", 400), ("val", 4)):
        for name in "ab":
            (tmp_path / part_of / name).mkdir(parents=True)
            for i in range(n // 2):
                Image.new("RGB", (64, 64)).save(tmp_path / part_of / name / f"{i}.png")
    left = killed_decoding(forks, tmp_path, ["--dataset", "folder", "--data-dir", str(tmp_path)])
    if changed:
        (tmp_path / "train/a/0.png").unlink()
    folder.open_folder(tmp_path, "train", 64)
    assert not left.exists() and not list(tmp_path.glob("..*"))
