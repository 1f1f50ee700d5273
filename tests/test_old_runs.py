"""Runs written before the package existed: finished ones serve, one that was cut off goes on."""
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT

import advprune
import evaluate
import prune
import train


@pytest.fixture
def old(tmp_path):
    shutil.copytree(ROOT / "tests/old_runs", tmp_path / "old")
    return tmp_path / "old"


def test_a_finished_one_evaluates_prunes_and_loads(old):
    record = evaluate.main([str(old / "finished"), "--attack", "clean,fgsm", "--n", "100"])
    assert record["n"] == 100
    scored = prune.main([str(old / "finished"), "--prune", "low", "--p", "0.5"])
    assert (scored["n"], scored["n_kept"]) == (120, 60)
    model = advprune.load(old / "finished")
    assert not model.training
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_one_that_was_cut_off_resumes_to_its_end(old):
    kept = np.load(old / "cut/scores.npz")["kept"]
    record = train.main(["--resume", str(old / "cut")])
    assert (record["n_train"], record["n_kept"], record["epochs"]) == (120, 60, 3)
    rows = (old / "cut/log.csv").read_text().splitlines()
    before = (ROOT / "tests/old_runs/cut/log.csv").read_text().splitlines()
    # They had no guard, and did not say that they were the first segment of the run.
    assert [row.removesuffix(",nan,nan,1") for row in rows[1:-1]] == before[1:]
    assert len(rows) == 4 and rows[-1].endswith(",2") and len(record["segment_seconds"]) == 2
    assert np.array_equal(np.load(old / "cut/scores.npz")["kept"], kept)
    assert advprune.load(old / "cut")(torch.rand(1, 1, 28, 28)).shape == (1, 10)


def test_they_end_with_the_weights_of_today(old):
    """The same flags give the same network as the code before, to rounding."""
    import json
    import shlex

    command = json.loads((old / "cut/config.json").read_text())["command"]
    train.main([*shlex.split(command)[2:-1], "today"])
    train.main(["--resume", str(old / "cut")])
    x = torch.rand(50, 1, 28, 28)
    torch.testing.assert_close(advprune.load("today")(x), advprune.load(old / "cut")(x),
                               rtol=1e-3, atol=1e-3)
