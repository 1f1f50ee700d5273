"""Two processes of one output, folders that are not taken, and what killed processes leave."""
import os
import signal

import killing
import pytest
from conftest import refused

import evaluate
import prune
import train

FLAGS = ["--dataset", "digits", "--limit", "400", "--epochs", "4"]


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


@pytest.mark.parametrize("moment", ["config.json", "state.pt"])
def test_a_living_run_is_not_taken(begun, forks, tmp_path, capsys, moment):
    """config.json: it is in its first epoch."""
    whole = killing.Command(forks, "train", tmp_path / "output-whole")  # with as many threads
    whole.run(*FLAGS, "--out", str(tmp_path / "whole"))
    run = tmp_path / "run"
    argv = [*FLAGS, "--out", str(run)]
    command, started = begun("train", argv, (run / moment).exists)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for same in (argv, ["--resume", str(run)]):
        assert "in use by another process" in refused(train.main, same, capsys)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    go_on(command, started)
    assert killing.results(run) == killing.results(tmp_path / "whole")


@pytest.mark.parametrize(("script", "flags", "out", "lock"), [
    (prune, ["--score", "margin"], "out", "out/.lock-0"),
    (evaluate, ["--attack", "pgd", "--n", "20"], "out.json", ".out.json.lock")])
def test_a_second_of_the_same_command_is_refused_and_the_first_ends(
        begun, trained, tmp_path, capsys, script, flags, out, lock):
    argv = [str(trained()), *flags, "--out", str(tmp_path / out)]
    command, started = begun(script.__name__, argv, (tmp_path / lock).exists)
    assert "in use by another process" in refused(script.main, argv, capsys)
    go_on(command, started)
    assert script.main(argv)  # it is finished


@pytest.mark.parametrize("names", [["config.json"], [".lock", "mine.txt"], ["scores.npz"],
                                   [".lock", "config.json", "state.previous.pt"]])
def test_other_folders_are_never_taken(tmp_path, capsys, names):
    (tmp_path / "run").mkdir()
    for name in names:
        (tmp_path / "run" / name).write_text("{}")
    assert "run " in refused(train.main, [*FLAGS, "--out", "run"], capsys)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(names)


def test_a_link_to_nowhere_is_not_taken(tmp_path, capsys):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    assert "exists already" in refused(train.main, [*FLAGS, "--out", "run"], capsys)


@pytest.mark.parametrize("there", [[], [".lock"], [".config.json.part"]])
def test_a_run_that_was_killed_before_it_wrote_anything_is_no_obstacle(there, tmp_path):
    (tmp_path / "run").mkdir()
    for name in there:
        (tmp_path / "run" / name).write_text("")
    train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "1", "--out", "run"])
    assert not list(tmp_path.rglob(".*.part"))
