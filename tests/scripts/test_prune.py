"""prune.py: what it writes, train.py by its file, processes, interruptions, flags."""
import csv
import json
from pathlib import Path

import killing
import numpy as np
import pytest
import torch
from conftest import TRAINED, ended, refused
from PIL import Image

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
    assert "is not of this command" in refused(prune.main, [*flags, "--p", "0.3"], capsys)


def rows(folder):
    """The rows of its scores.csv."""
    text = (Path(folder) / "scores.csv").read_text("utf-8", "surrogateescape")
    return list(csv.DictReader(text.splitlines()))


def predicted(folder):
    return [row["predicted"] for row in rows(folder)]


def test_the_table_of_scores_has_a_row_for_each_example(trained):
    record = prune.main([str(trained()), "--out", "one"])
    found, saved = rows("one"), np.load("one/scores.npz")
    model, dataset = weights.of_run(trained()), data.load("synthetic", limit=600)
    assert [row["image"] for row in found] == [str(i) for i in range(record["n"])]
    assert [int(row["label"]) for row in found] == dataset.labels.tolist()
    assert [int(row["predicted"]) for row in found] == models.predict(
        model, dataset.images).tolist()
    losses = pruning.score(model, dataset.images, dataset.labels, "clean-loss")
    np.testing.assert_allclose([float(row["loss"]) for row in found], losses, rtol=1e-4)
    np.testing.assert_array_equal([np.float32(row["score"]) for row in found], saved["scores"])
    assert [i for i, row in enumerate(found) if row["kept"] == "1"] == saved["kept"].tolist()


@pytest.mark.parametrize("name", ["plain.png", "deep/in it.png", "a, \"b\".png", "\udcff.png"])
def test_the_table_names_the_files_of_a_folder(name, tmp_path):
    for part in ("train", "val"):
        for c, label in enumerate(("ant", "bee")):
            path = tmp_path / "images" / part / label / name
            path.parent.mkdir(parents=True)
            Image.new("L", (8, 8), 90 + 80 * c).save(path, "png")
    train.main(["--dataset", "folder", "--data-dir", "images", "--image-size", "8", "--epochs",
                "1", "--model", "mnist-net", "--width", "1", "--out", "run"])
    prune.main(["run", "--p", "0", "--out", "scored"])
    assert {row["image"]: row["label"] for row in rows("scored")} == {
        f"{label}/{name}": label for label in ("ant", "bee")}


def test_suspects_are_what_the_network_doubts_most_whatever_the_score(trained, monkeypatch,
                                                                     capsys):
    flags = [str(trained()), "--score", "margin", "--margin-classes", "2", "--out", "one"]
    prune.main(flags)
    monkeypatch.setattr(pruning, "score", None)  # the same command with it scores nothing
    found = prune.main([*flags, "--suspects", "5"])["suspects"]
    assert found == prune.main([*flags, "--suspects", "9"])["suspects"][:5]
    losses = {row["image"]: float(row["loss"]) for row in rows("one")}
    assert {row["image"]: row["loss"] for row in found} == {
        image: losses[image] for image in sorted(losses, key=losses.get)[-5:]}
    assert found[0]["loss"] == max(losses.values())
    assert "the labels that the network doubts most" in capsys.readouterr().out
    for content in ("image,loss\n1,2\n", "image,label,predicted,loss\n1,2,3,x\n"):
        Path("one/scores.csv").write_text(content)
        with pytest.raises(UserError, match="one/scores.csv is not what prune.py wrote"):
            prune.main([*flags, "--suspects", "5"])


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
    command.run(*flags, "--out", str(tmp_path / "two"))
    two = json.loads((tmp_path / "two/prune.json").read_text())
    assert two["misclassified"] == one["misclassified"]
    scores, others = (np.load(f"{name}/scores.npz")["scores"] for name in ("one", "two"))
    np.testing.assert_allclose(scores, others, rtol=1e-3, atol=1e-5)
    assert predicted("one") == predicted("two")


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
        "scores.npz", "scores.csv", "pruned.png", "prune.json"}


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


@pytest.mark.parametrize("score", [["loss"], ["margin", "--margin-classes", "2"]])
def test_a_rule_gets_the_epochs_of_the_run_with_any_score(score, trained, tmp_path):
    (tmp_path / "own.py").write_text("def late(scores, labels, p, seed, epoch):\n"
                                     "    return [0, 1] if epoch == 3 else [0]\n")
    flags = ["--prune", "own.py:late", "--out", "scored", "--score", *score]
    record = prune.main([str(trained()), *flags])
    assert record["n_kept"] == 2
