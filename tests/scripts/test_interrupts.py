"""Ctrl-C in the work: what a script says then, and what it leaves."""
import os
import signal

import killing
import pytest


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


@pytest.mark.parametrize("moment", ["config.json", "state.pt"])
def test_training_names_the_command_that_continues_it(forks, tmp_path, moment):
    run = tmp_path / "a run"
    said = interrupted(forks, tmp_path / "log", "train",
                       ["--dataset", "synthetic", "--epochs", "50", "--out", str(run)],
                       (run / moment).exists)
    assert said == f"train.py: interrupted; python train.py --resume '{run}' continues the run"
    assert not list(run.glob(".*.part")) and (run / "config.json").exists()


def test_processes_are_continued_by_torchrun(forks, tmp_path):
    run = tmp_path / "run"
    said = interrupted(forks, tmp_path / "log", "train",
                       ["--dataset", "synthetic", "--epochs", "50", "--out", str(run)],
                       (run / "state.pt").exists, processes=2)
    assert said == ("train.py: interrupted; torchrun --nproc-per-node 2 -- train.py --resume "
                    f"{run} continues the run")
