"""`make gpu-records`: the line itself comes first, and no time left costs no record."""
import json
import subprocess
from types import SimpleNamespace

import pytest
import torch

from experiments import __main__ as experiments
from experiments import gpu, studies


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A machine that says that it has a GPU. Returns a function to replace subprocess.run."""
    monkeypatch.setattr(gpu.console, "device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(gpu, "environment", lambda _: {"device": "a card"})
    monkeypatch.setattr(gpu, "CHECKOUT", tmp_path)
    (tmp_path / "results").mkdir()
    return lambda run: monkeypatch.setattr(gpu.subprocess, "run", run)


def test_the_records_of_a_gpu_begin_with_the_line_itself(card, tmp_path):
    """Here no step runs; what ends in time is a record, and what does not says so."""
    begun = []

    def run(command, timeout, **_):
        begun.append(command[1:])
        if "kernels" in command:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0, 'a row\n{"a": 1}\n')

    card(run)
    found = experiments.main(["gpu", "--data-dir", str(tmp_path)])
    assert begun[0] == ["-m", "experiments", "headline", "--data-dir", str(tmp_path)]
    assert found["headline"] == 0 and found["kernels"] == "cut off"
    record = json.loads((tmp_path / "results/gpu-headline.json").read_text())
    assert record["result"] == {"a": 1} and record["device"] == "a card"
    assert json.loads((tmp_path / "results/gpu-kernels.json").read_text())["cut_off"]
    line = "--prune high --p 0.4 --epoch 3"
    assert [run.flags.endswith(line) for run in studies.EXPERIMENTS["headline"][1].runs()] == [
        True, False, False]


def test_a_gpu_step_without_time_leaves_its_record_alone(card, tmp_path, monkeypatch):
    clock = iter((0, 10, 20, 30, 700, 710))  # start; before and after headline; then too late
    card(lambda command, **_: subprocess.CompletedProcess(command, 0, "{}"))
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: next(clock, 720)))
    (tmp_path / "results/gpu-kernels.json").write_text("of before")
    found = experiments.main(["gpu", "--data-dir", str(tmp_path)])
    assert found == {"headline": 0, "tests": 0, "ablation": "no time left",
                     "kernels": "no time left"}
    assert (tmp_path / "results/gpu-kernels.json").read_text() == "of before"
    assert not (tmp_path / "results/gpu-ablation.json").exists()
