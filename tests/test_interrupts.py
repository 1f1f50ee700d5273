"""Ctrl-C: what a script says then, and what it leaves."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import killing
import pytest

from advprune import locks

SCRIPTS = sorted(path.name for path in killing.ROOT.glob("*.py")
                 if "\n    main()" in path.read_text())
PYTHON = [sys.executable]


def test_training_names_the_command_that_continues_it(tmp_path):
    run = tmp_path / "a run"
    process = subprocess.Popen(
        [*PYTHON, str(killing.ROOT / "train.py"), "--dataset", "synthetic", "--epochs", "50",
         "--out", str(run)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    killing.until(lambda: (run / "state.pt").exists() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert errors.splitlines()[-1] == (f"train.py: interrupted; python train.py --resume "
                                       f"'{run}' continues the run")
    assert "Traceback" not in errors and not (run / ".lock").exists()
    assert not list(run.glob(".*.part")) and (run / "state.pt").exists()


def interrupted(forks, log, name, argv, happened, processes=1):
    """What the script prints when it gets SIGINT once happened()."""
    command = killing.Command(forks, name, log, processes)
    started = command.start(*argv)
    killing.until(happened, started[0])
    for process in started:
        os.kill(process.pid, signal.SIGINT)
    command.wait(started, code=130)
    assert "Traceback" not in log.read_text()
    return log.read_text().splitlines()[-1]


def test_the_first_epoch_leaves_nothing(forks, tmp_path):
    run = tmp_path / "runs/run"
    said = interrupted(forks, tmp_path / "log", "train",
                       ["--dataset", "synthetic", "--out", str(run)],
                       (run / "config.json").exists)
    assert said == "train.py: interrupted; its first epoch had not ended, so nothing is kept"
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(("name", "flags", "begun"), [
    ("prune", ["--score", "margin", "--out", "out"], "out*.lock"),
    ("evaluate", ["--attack", "pgd", "--out", "out.json"], "out.state"),
])
def test_the_same_command_continues(forks, trained, tmp_path, name, flags, begun):
    said = interrupted(forks, tmp_path / "log", name, [str(trained()), *flags],
                       lambda: list(tmp_path.glob(begun)))
    assert said.startswith(f"{name}.py: interrupted; the same command continues the ")
    assert not list(tmp_path.glob("*.lock")) and not list(tmp_path.glob(".*.part"))


def test_a_study_says_that_its_command_continues_it(forks, tmp_path):
    said = interrupted(forks, tmp_path / "log", "reproduce", ["digits"],
                       Path("runs/digits/full-0/state.pt").exists)
    assert said == "reproduce.py: interrupted; the same command continues the study"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_traceback_during_the_imports(script):
    process = subprocess.Popen([*PYTHON, str(killing.ROOT / script), "--help"], text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    maps = Path(f"/proc/{process.pid}/maps")
    killing.until(lambda: "libtorch" in maps.read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGINT


def test_an_interrupt_while_a_lock_is_taken_leaves_none(tmp_path, monkeypatch):
    take = locks.take

    def interrupted_take(path):
        file = take(path)
        signal.raise_signal(signal.SIGINT)
        return file

    released = []
    monkeypatch.setattr(locks, "take", interrupted_take)
    monkeypatch.setattr(locks.cli, "at_end", released.append)
    with pytest.raises(KeyboardInterrupt):
        locks.lock(tmp_path / "a.lock", "a")
    (release,) = released
    release()
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
