"""--minutes: the epochs that fit are counted right, and the run is as one with --epochs."""
import dataclasses
import json
import time
from functools import partial
from pathlib import Path

import killing
import pytest
import torch
from conftest import refused, same
from test_own_network import NETWORK

import train
from advprune import config, guard, minutes, run

SMALL = ["--dataset", "synthetic", "--limit", "100", "--width", "1"]
PRUNED = ["--p", "0.5", "--epoch", "1"]


@pytest.fixture
def three(monkeypatch):
    """At most three epochs are chosen, after a short measurement."""
    monkeypatch.setattr(minutes, "MOST", 3)
    monkeypatch.setattr(minutes, "TIMED", (1e-3, 0.0))


def test_the_run_is_that_of_as_many_epochs(three, monkeypatch, tmp_path, capsys):
    """Of a network with batch norm and dropout; by a score that sees the training.

    How long it will take is said where the user has not said it.
    """
    monkeypatch.setattr(run, "WORTH_SAYING", -1)
    (tmp_path / "net.py").write_text(NETWORK)
    flags = [*SMALL[:-2], "--model", "net.py:Net", "--prune", "high", "--epoch", "1", "--score"]
    for score in ("running-loss", "margin"):
        record = train.main([*flags, score, "--minutes", "5", "--out", f"{score}-m"])
        said = capsys.readouterr().err
        assert record["epochs"] == 3 and "3 epochs fit into 5 minutes" in said
        assert " left" not in said
        train.main([*flags, score, "--epochs", "3", "--out", f"{score}-e"])
        assert " left" in capsys.readouterr().err
        assert same(f"{score}-m", f"{score}-e")
    assert {path.name for path in tmp_path.iterdir()} == {"net.py", *(
        f"{score}-{end}" for score in ("running-loss", "margin") for end in "me")}


@pytest.mark.parametrize("how", ["same", "resume"])
def test_the_number_is_kept(three, monkeypatch, cut_off, capsys, how):
    command = [*SMALL, "--minutes", "5", "--out", "cut"]
    with cut_off(1):
        train.main(command)
    monkeypatch.setattr(minutes, "update_seconds", None)  # nothing is measured again
    described = json.loads(Path("cut/config.json").read_text())
    assert (described["settings"]["minutes"], described["settings"]["epochs"]) == (5, 3)
    for other, names in ((["--minutes", "6"], "minutes"), (["--epochs", "3"], "minutes, epochs")):
        said = refused(train.main, [*SMALL, *other, "--out", "cut"], capsys)
        assert f"({names} differ)" in said
    again = command if how == "same" else ["--resume", "cut"]
    assert train.main(again)["epochs"] == 3
    assert train.main(again)["epochs"] == 3  # it is finished


# An update takes 25 s, so 4 batches of at most 32 images take 100 s. An image takes 0.24 s a pass:
# 120 s for the 500 test images, and 169 s for a check of 32. A checkpoint takes 1 s, scoring 60 s,
# and a picture 40 s.
@pytest.mark.parametrize(("flags", "checks", "wanted"), [
    ([], False, 5),  # 120 + 101 E is 625, and the next one 726
    (["--prune", "random", *PRUNED], False, 8),  # 210 + 51 E is 618, and the next one 669
    (["--prune", "high", *PRUNED], False, 7),  # 60 more: 627 and 678
    (["--prune", "own.py:rule", *PRUNED], False, 4),  # may keep all: 160 + 101 E: 564, 665
    (["--prune", "high", "--p", "auto", "--score-model", "first", "--first-epochs", "1"], False,
     1),  # the first training 181 s, then 268 + 101 E: 550, and the next one 651
    ([], True, 1)])  # 120 + 270 E is 390, and the next one 660
def test_what_fits_is_counted(monkeypatch, tmp_path, flags, checks, wanted):
    """Of 11.3 minutes 644 s are planned, less the seconds that this test has taken."""
    for name, seconds in (("update", (25.0, 1.2)), ("save", 1.0),
                          ("score", 60.0 * ("high" in flags))):
        monkeypatch.setattr(minutes, f"{name}_seconds", lambda *_, seconds=seconds: seconds)
    monkeypatch.setattr(minutes, "DRAWN", 40.0)
    monkeypatch.setattr(guard, "due", lambda a, *_: set(range(a.epochs * checks)))
    (tmp_path / "own.py").write_text("def rule(*_): return [0, 1]")
    settings = config.parse([*SMALL, *flags, "--minutes", "11.3"])[1]
    fit = partial(minutes.epochs, folder=tmp_path / "run", began=time.monotonic())
    training = train.prepared(settings, torch.device("cpu"), fit=fit)[0]
    assert training.settings == dataclasses.replace(settings, epochs=wanted)


@pytest.mark.parametrize(("flags", "words"), [
    ([*SMALL, "--epochs", "3"], "--epochs has no effect with --minutes"),
    (["--resume", "run"], "leave out --minutes"),
    (SMALL, "--minutes 5 is too short for 1 epoch, each of about 4 minutes on this machine; give"),
    ([*SMALL, "--prune", "random", "--epoch", "3"], "too short for 4 epochs"),
    ([*SMALL, "--prune", "high", *PRUNED, "--until-epoch", "6"], "too short for 7 epochs")])
def test_refused_before_the_work(monkeypatch, tmp_path, capsys, flags, words):
    monkeypatch.setattr(minutes, "update_seconds", lambda *_: (62.5, 3.0))
    assert words in refused(train.main, [*flags, "--minutes", "5"], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_agree_and_end_in_time(forks, tmp_path):
    command = killing.Command(forks, "train", tmp_path / "output", 2)
    start = time.monotonic()
    command.run(*SMALL, "--minutes", "0.5", "--out", str(tmp_path / "run"))
    assert 20 < time.monotonic() - start < 40
    assert run.record(tmp_path / "run")["epochs"] > 3


@pytest.mark.parametrize(("batch", "said_at"), [(2.0, 3), (0.5, None)])
def test_the_time_that_is_left_is_said_once(monkeypatch, capsys, batch, said_at):
    """1,000 images of a run of 3,000 are done. Batches of 10 take 2 s or 0.5 s."""
    now = [0.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    bar = run.Bar(total=3000, initial=1000, disable=True)
    for count in range(1, 6):
        now[0] += batch
        bar.update(10)
        said = capsys.readouterr().err
        assert said == ("train.py: about 7 minutes left\n" if count == said_at else "")  # 394 s
    bar.say_left(0.1)  # after the epoch: 195 s
    assert capsys.readouterr().err == ("" if said_at else "train.py: about 3 minutes left\n")
    short = run.Bar(total=3000, initial=1000, disable=True)
    short.say_left(0.05)
    assert capsys.readouterr().err == ""
