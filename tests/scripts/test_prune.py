"""prune.py: what it writes, train.py by its file, processes, interruptions, flags."""
import json

import killing
import numpy as np
import pytest
import torch
from conftest import TRAINED, ended, refused

import prune
import train
from advprune import attacks, data, models, pruning, weights
from advprune.errors import UserError


def test_a_run_is_scored_and_train_prunes_by_the_file(trained, tmp_path, capsys):
    flags = [str(trained()), "--prune", "low+high", "--p", "0.25", "--class-balanced", "--out",
             "a"]
    code, out, _ = ended(prune.main, flags, capsys)
    record = json.loads(out.splitlines()[-1])
    assert code == 0
    assert {"source", "score", "prune", "p", "n", "n_kept", "scores_file"} <= record.keys()
    saved = np.load(record["scores_file"])
    assert (len(saved["scores"]), len(saved["kept"])) == (record["n"], record["n_kept"])
    assert record["n_kept"] == record["n"] - round(0.25 * record["n"])
    by_file = train.main([*TRAINED, "--p", "0.25", "--prune", "low+high", "--class-balanced",
                          "--out", "r", "--scores", record["scores_file"]])
    assert by_file["epoch"] == 0
    assert np.array_equal(np.load("r/scores.npz")["kept"], saved["kept"])
    again = prune.main(flags)
    assert again == record
    assert "is not of this command" in refused(prune.main, [*flags, "--p", "0.3"], capsys)


def test_margins_are_written(trained):
    run = trained()
    record = prune.main([str(run), "--score", "margin", "--margin-norm", "l2",
                         "--margin-classes", "3", "--out", "one"])
    scores = np.load("one/scores.npz")["scores"]
    model, dataset = weights.of_run(run), data.load("synthetic", limit=600)
    found = attacks.deepfool(model, dataset.images, dataset.labels, "l2", classes=3)
    np.testing.assert_allclose(scores, found.distance.where(found.crossed, torch.tensor(28.0)),
                               rtol=1e-3, atol=1e-5)
    wrong = (models.predict(model, dataset.images) != dataset.labels).numpy()
    assert np.array_equal(scores == 0, wrong)
    assert record["misclassified"] == wrong.sum() > 0
    assert record["not_crossed"] == (scores == 28).sum()
    assert (record["norm"], record["classes"]) == ("l2", 3)


def test_two_processes_write_the_same_margins(trained, forks, tmp_path):
    flags = [str(trained()), "--score", "margin", "--margin-norm", "l2", "--margin-classes", "3"]
    one = prune.main([*flags, "--out", "one"])
    command = killing.Command(forks, "prune", tmp_path / "output", 2)
    command.wait(command.start(*flags, "--out", str(tmp_path / "two")))
    two = json.loads((tmp_path / "two/prune.json").read_text())
    assert two["misclassified"] == one["misclassified"]
    scores, others = (np.load(f"{name}/scores.npz")["scores"] for name in ("one", "two"))
    np.testing.assert_allclose(scores, others, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["margin", "loss"])
def test_interrupted_scoring_goes_on_and_writes_the_same(trained, tmp_path, monkeypatch, kind):
    flags = [str(trained()), "--score", kind, "--batch-size", "100", "--prune", "low"]
    flags += ["--margin-classes", "2"] if kind == "margin" else []
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
        with pytest.raises(KeyboardInterrupt):
            prune.main([*flags, "--out", "cut"])
        with pytest.raises(UserError, match="another scoring"):  # of other settings
            prune.main([*flags, "--p", "0.1", "--out", "cut"])
        calls.clear()
        prune.main([*flags, "--out", "cut"])  # two batches are left
    assert len(calls) == 2
    whole, cut = (np.load(tmp_path / name / "scores.npz") for name in ("whole", "cut"))
    for key in ("scores", "labels", "kept"):
        assert np.array_equal(whole[key], cut[key])
    assert {path.name for path in (tmp_path / "cut").iterdir() if path.suffix} == {
        "scores.npz", "pruned.png", "prune.json"}


def test_margin_flags_need_the_margin(trained, capsys):
    for flags in (["--margin-norm", "l2"], ["--margin-classes", "3"],
                  ["--score", "margin", "--margin-classes", "1"], ["--score", "running-loss"],
                  ["--prune", "puma", "--score", "loss"]):
        refused(prune.main, [str(trained()), *flags], capsys)


def test_without_out_the_folder_in_the_run_is_named_by_settings(trained, monkeypatch, capsys):
    run = trained()
    record = prune.main([str(run), "--score", "clean-loss", "--p", "0.2"])
    out = run / "prune-clean-loss-high-0.2"
    assert record["scores_file"] == str(out / "scores.npz")
    monkeypatch.setattr(pruning, "score", None)  # the same command again scores nothing
    again = prune.main([str(run), "--score", "clean-loss", "--p", "0.2"])
    assert again == json.loads((out / "prune.json").read_text())
    assert f"{out} is finished" in capsys.readouterr().err
