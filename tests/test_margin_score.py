"""The margin score of prune.py: what it writes, processes, interruptions, flags."""
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import prune
from advprune import attacks, data, files, models, pruning, runs, saved


def script(flags, *torchrun):
    done = subprocess.run([sys.executable, *torchrun, str(ROOT / "prune.py"), *flags],
                          capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_script_writes_margins_and_two_processes_write_the_same(trained, tmp_path):
    run = str(trained())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [run, "--score", "margin", "--norm", "l2", "--classes", "3", "--steps", "3"]
    one = prune.main([*flags, "--out", "one"])
    two = script([*flags, "--out", "two"], "-m", "torch.distributed.run", "--nproc-per-node", "2",
                 "--master-port", str(port), "--")
    scores, others = (np.load(f"{name}/scores.npz")["scores"] for name in ("one", "two"))
    np.testing.assert_allclose(scores, others, rtol=1e-3, atol=1e-5)
    model = saved.from_run(run, prune.runs.config(run))
    dataset = data.load("synthetic", limit=600)
    wrong = (models.predict(model, dataset.images) != dataset.labels).numpy()
    assert np.array_equal(scores == 0, wrong)
    assert one["misclassified"] == two["misclassified"] == wrong.sum() > 0
    assert one["not_crossed"] == (scores == 28).sum()
    assert (one["norm"], one["classes"], one["steps"]) == ("l2", 3, 3)
    assert not list(trained().glob("*.state"))


@pytest.mark.parametrize("kind", ["margin", "loss"])
def test_interrupted_scoring_goes_on_and_writes_the_same(trained, tmp_path, monkeypatch, kind):
    run = trained()
    flags = [str(run), "--score", kind, "--batch-size", "100", "--prune", "low"]
    flags += ["--steps", "2", "--classes", "3"] if kind == "margin" else []
    prune.main([*flags, "--out", "whole"])
    name, calls = "deepfool" if kind == "margin" else "rs_fgsm", []
    inner = getattr(attacks, name)

    def counted(*args, **kwargs):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return inner(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(attacks, name, counted)
        with pytest.raises(SystemExit):
            prune.main([*flags, "--out", "cut"])
        assert len(list(tmp_path.glob("cut*.state"))) == 1
        calls.clear()
        prune.main([*flags, "--out", "cut"])  # two batches are left
    assert len(calls) == 2
    files = [np.load(tmp_path / name / "scores.npz") for name in ("whole", "cut")]
    for key in ("scores", "labels", "kept"):
        assert np.array_equal(files[0][key], files[1][key])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]


def test_what_is_kept_belongs_to_network_and_settings(trained, monkeypatch):
    monkeypatch.setattr(pruning, "SAVE_SECONDS", 0.0)
    run = trained()
    model = saved.from_run(run, runs.config(run))
    names = {prune.state_file(run, model, used).name for used in ("a", "a", "b")}
    assert len(names) == 2
    model[0].bias.data[0] += 1
    assert prune.state_file(run, model, "a").name not in names
    written = []
    monkeypatch.setattr(files, "write_state", lambda path, content: written.append(content[1]))
    dataset = data.load("synthetic", limit=250)
    pruning.score(model, dataset.images, dataset.labels, "margin", batch_size=100,
                  state=run / "x.state")
    assert written == [100, 200, 250, 250]  # after every batch, were that due, and at the end


def test_margin_flags_need_the_margin(trained, capsys):
    for flags in (["--norm", "l2"], ["--classes", "3"], ["--steps", "9"],
                  ["--score", "margin", "--classes", "1"], ["--score", "running-loss"]):
        with pytest.raises(SystemExit) as stopped:
            prune.main([str(trained()), *flags])
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
