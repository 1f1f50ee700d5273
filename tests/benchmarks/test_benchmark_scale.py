"""scale, and the process of its own that it uses."""
import json
import os
import platform
import resource
import subprocess
import sys
from contextlib import nullcontext
from statistics import median

import pytest
import torch
from conftest import ROOT

from advprune import console
from advprune.errors import UserError
from benchmarks import __main__ as benchmark
from benchmarks import scale, timing


def test_deviation_is_from_proportional_to_the_examples():
    rows = [{"examples": 400, "epoch_seconds": [90, 2, 4, 2]},  # a machine of changing speed
            {"examples": 250, "epoch_seconds": [1, 1, 2, 30]},
            {"examples": 128, "epoch_seconds": [80, 0.5, 0.8, 0.4]}]
    scale.from_ratios(rows, 1)
    assert [row["seconds"] for row in rows] == pytest.approx([8, 2 * (1 + 1.5), 2 * (1 + 0.6)])
    assert [row["deviation"] for row in rows] == pytest.approx([0, 0, 0.25])


def test_scale_record(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SIZES", (0.5, 1.0))
    monkeypatch.setattr(scale, "apart", nullcontext)
    record = benchmark.main(["scale", "--dataset", "digits", "--limit", "200", "--epochs", "4",
                             "--width", "4", "--json", "s.json"])
    assert json.loads((tmp_path / "s.json").read_text()) == record
    assert [row["p"] for row in record["rows"]] == list(scale.SHARES)
    assert (record["epochs"], record["prune_epoch"], record["width"]) == (4, 1, 4)
    for row in record["rows"]:
        assert row["examples"] == 200 + 3 * (200 - round(row["p"] * 200))
        assert row["train_seconds"] == pytest.approx(sum(row["epoch_seconds"]), rel=1e-6)
        assert row["seconds"] > 0
        assert len(row["epoch_seconds"]) == 4
        assert row["guard_seconds"] == 0  # so few examples pay for no check
        assert (row["prune_seconds"] > 0) == (row["p"] > 0)
    assert [row["examples"] for row in record["memory"]] == [100, 200]
    for row in record["memory"]:
        assert row["data"] == row["examples"] * (28 * 28 + 8) / 2**20
        assert row["peak"] >= row["before"] > 20


def test_scale_needs_an_example_that_is_kept():
    with pytest.raises(UserError, match="--limit"):
        benchmark.main(["scale", "--dataset", "digits", "--limit", "2", "--epochs", "2"])


@pytest.mark.slow
def test_peak_memory_is_that_of_this_process():
    code = ("import torch; from benchmarks.scale import peak; cpu = torch.device('cpu'); "
            "print(peak(cpu)); torch.ones(300, 2**18); print(peak(cpu))")  # 300 MiB, freed again
    block = torch.ones(2000, 2**18)  # of the process that starts it
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, check=True,
                          stdout=subprocess.PIPE)
    before, after = map(float, done.stdout.split())
    assert before + 290 < after < before + 320 and before < block.nbytes / 2**20


# --- a process of its own

def of_this_process(fail=False):
    """(its number, page faults of a tensor of 64 MiB)"""
    if fail:
        raise ValueError("for a reason")
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return os.getpid(), median(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's malloc")
def test_freed_memory_is_kept_here_but_not_apart():
    console.device("cpu")
    with timing.apart(of_this_process) as other:
        process, faults = other()
        assert other()[0] == process != os.getpid()
        with pytest.raises(UserError, match="for a reason"):
            other(True)
    assert faults > 2000 and of_this_process()[1] < 100
