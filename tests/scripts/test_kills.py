"""Runs that are killed at any moment, and started again, end as runs that nobody killed.

Each kill is a SIGKILL of a real process, at a random moment or while it writes a certain file.
The same command continues, always.
"""
import itertools
import random
import time

import killing
import pytest

DIGITS = ["--dataset", "digits", "--limit", "300", "--epochs", "4"]
SYNTHETIC = ["--dataset", "synthetic", "--limit", "300", "--epochs", "4"]
MNIST = ["--dataset", "mnist", "--limit", "3000", "--epochs", "3"]
HIGH, PUMA = ["--prune", "high", "--epoch", "1"], ["--prune", "puma", "--epoch", "1"]
ROLLBACK = ["--on-collapse", "rollback"]
FILES = ["config.json", "log.csv", "state.pt", "model.safetensors"]
KILLS = {  # name -> (flags, processes, kills in the default suite, kills under -m slow)
    "digits": (DIGITS, 1, 8, 10),
    "digits-high": ([*DIGITS, *HIGH], 1, 3, 10),
    "digits-puma": ([*DIGITS, *PUMA], 1, 1, 10),
    "digits-rollback": ([*DIGITS, *ROLLBACK], 1, 4, 10),
    "rollback-past-pruning": ([*DIGITS, *ROLLBACK, *HIGH], 1, 0, 10),
    "synthetic": (SYNTHETIC, 1, 4, 10),
    "synthetic-ema": ([*SYNTHETIC, "--ema", "0.9", "--prune", "low+high", "--epoch", "2",
                       "--score", "running-loss"], 1, 0, 10),
    "two": ([*SYNTHETIC, *HIGH], 2, 1, 10),
    "mnist": ([*MNIST, *HIGH], 1, 0, 10),
    "mnist-puma": ([*MNIST, *PUMA], 1, 0, 10),
}


def survive(forks, tmp_path, flags, processes, kills, seed):
    """Kill a run so often, start it again each time, and compare its end with one left alone.

    Returns how many of the kills were followed by a continuation from a checkpoint.
    """
    command = killing.Command(forks, "train", tmp_path / "output", processes,
                              collapse="rollback" in flags)
    whole, run, random_moment = tmp_path / "whole", tmp_path / "run", random.Random(seed)
    begun = time.monotonic()
    command.run(*flags, "--out", str(whole))
    usual = time.monotonic() - begun  # seconds
    rolled_back = "rollback" in (whole / "train.json").read_text()
    assert rolled_back == ("rollback" in flags)
    done = continued = 0
    for turn in itertools.count():
        if done == kills:
            break
        if (run / "train.json").exists():  # it had ended before all its kills: once more
            assert killing.results(run) == killing.results(whole)
            run.rename(tmp_path / f"ended-{turn}")
        started = command.start(*flags, "--out", str(run))
        if turn % 3 == 0:  # after a random epoch, the last ones more often
            rows = random_moment.choice([1, 2, 2, 3, 3])
            killing.until(lambda rows=rows: epochs(run) >= rows, started[0])
            time.sleep(random_moment.uniform(0, 0.02))
        elif turn % 3 == 1:
            time.sleep(random_moment.uniform(0, usual))
        else:
            moment_of_writing(run / random_moment.choice(FILES), started[0])
            time.sleep(random_moment.uniform(0, 0.002))
        done += killing.kill(started)
        continued += (run / "state.pt").exists() and not (run / "train.json").exists()
    command.run(*flags, "--out", str(run))
    assert killing.results(run) == killing.results(whole)
    assert not list(tmp_path.rglob(".*.part"))
    return continued


def epochs(run):
    """How many epochs of a run have a checkpoint."""
    if not (run / "state.pt").exists():
        return 0
    return len((run / "log.csv").read_text().splitlines()) - 1


def moment_of_writing(path, process):
    """Wait until this file is being written, or has just been; or until the process has ended."""
    def stamp():
        return path.stat().st_mtime_ns if path.exists() else None

    before = stamp()
    killing.until(lambda: path.with_name(f".{path.name}.part").exists() or stamp() != before,
                  process)


@pytest.mark.parametrize("name", [name for name, (_, _, kills, _) in KILLS.items() if kills])
def test_killed_runs_end_as_if_nothing_had_happened(forks, tmp_path, name):
    flags, processes, kills, _ = KILLS[name]
    continued = survive(forks, tmp_path, flags, processes, kills, seed=0)
    assert continued or kills < 4  # a few may all miss the moments between two epochs


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_a_hundred_more_kills(forks, tmp_path, name, real_data):
    flags, processes, _, kills = KILLS[name]
    place = ["--data-dir", real_data("MNIST")] if "mnist" in name else []
    assert survive(forks, tmp_path, [*flags, *place], processes, kills, seed=1) > 0
