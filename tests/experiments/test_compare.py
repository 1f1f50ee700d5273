"""compare: pairs by seed, the same images, intervals by hand; what makes a comparison unfair."""
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from scipy import stats

import evaluate
import train
from experiments import __main__ as experiments
from experiments import compare

FLAGS = ["--dataset", "synthetic", "--limit", "120", "--width", "2", "--epochs", "3"]


@pytest.fixture
def make():
    """make(name, seed, *flags): a finished run in runs/NAME-SEED, evaluated on 60 images."""

    def run(name, seed, *flags):
        folder = f"runs/{name}-{seed}"
        train.main([*FLAGS, "--seed", str(seed), "--out", folder, *flags])
        evaluate.main([folder, "--attack", "fgsm", "--n", "60"])
        return folder

    return run


def robust(run):
    return np.mean([int(bit) for bit in json.loads(
        Path(run, "eval-fgsm-60.json").read_text())["robust"]])


def test_three_seeds_have_students_interval(make, capsys):
    ours = [make("random", seed, "--prune", "random", "--p", "0.5", "--epoch", "1")
            for seed in range(3)]
    theirs = [make("all", seed, "--epochs", "2") for seed in range(3)]
    capsys.readouterr()
    for seed, folder in enumerate(ours):  # files of its own for each seed, as in a study
        path = Path(folder, "config.json")
        path.write_text(path.read_text().replace('"labels": null', f'"labels": "{seed}.npy"'))
    record = experiments.main(["compare", *reversed(ours), "--against", *theirs, "--json",
                               "c.json", "--figure", "c.png"])
    assert json.loads(Path("c.json").read_text()) == record
    assert Path("c.png").stat().st_size > 5000
    (row,) = record["evaluations"]
    differences = [robust(a) - robust(b) for a, b in zip(ours, theirs, strict=True)]
    assert row["robust"]["differences"] == pytest.approx(differences)
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert row["robust"]["interval"] == pytest.approx([low, high])
    assert record["unfair"] == [] and record["examples"] == [240, 240]
    assert record["pairs"] == [[a, b] for a, b in zip(ours, theirs, strict=True)]
    out, err = capsys.readouterr()
    assert "3 pairs by seed (0, 1, 2)" in out and err == ""


def test_one_seed_is_about_its_images(make, capsys):
    ours, theirs = make("a", 0), make("b", 0, "--epochs", "1")
    record = experiments.main(["compare", ours, "--against", theirs])
    (images,) = record["evaluations"][0]["robust"]["images"]
    both = [np.array([bit == "1" for bit in json.loads(
        Path(run, "eval-fgsm-60.json").read_text())["robust"]]) for run in (ours, theirs)]
    gained, lost = int((both[0] & ~both[1]).sum()), int((both[1] & ~both[0]).sum())
    assert (images["only_first_right"], images["only_second_right"]) == (gained, lost)
    assert images["difference"] == pytest.approx((gained - lost) / 60)
    assert "a-0 has seen 200% more examples than runs/b-0" in record["unfair"][0]
    assert "not a fair comparison" in capsys.readouterr().err


def test_mcnemar_by_hand():
    ours, theirs = np.array([1, 1, 1, 0, 1, 0], bool), np.array([0, 0, 0, 1, 1, 0], bool)
    found = compare.paired(ours, theirs)
    assert found["difference"] == pytest.approx(2 / 6)
    assert found["p"] == pytest.approx(2 * (1 + 4) / 16)  # 3 of 4 or more, both sides
    error = 1.96 * np.sqrt(4 - 4 / 6) / 6
    assert found["interval"] == pytest.approx([2 / 6 - error, 2 / 6 + error])


def test_other_images_and_other_settings_are_said(make, capsys):
    ours = [make("a", 0), make("a", 1, "--lr", "0.01")]
    theirs = [make("b", 0), make("b", 1)]
    config = Path(theirs[1], "config.json")
    content = json.loads(config.read_text())
    content["data"]["test"] = "0" * 64
    config.write_text(json.dumps(content))
    said = experiments.main(["compare", *ours, "--against", *theirs])["unfair"]
    assert said == ["runs/a-1 differs from runs/a-0 in more than the seed",
                    "runs/a-1 and runs/b-1 have other test images"]


def test_what_cannot_be_compared_is_one_sentence(make, tmp_path, capsys):
    a, b, other = make("a", 0), make("b", 0), make("b", 1)
    train.main([*FLAGS, "--out", "runs/bare-0"])
    for words, said in (
            ([a, "--against", other], "paired by seed"), ([a, b, "--against", a], "the same seed"),
            ([a, "--against", "runs/bare-0"], "no evaluation in common, and runs/bare-0 has 0"),
            (["nothing", "--against", a], "no run of train.py"), ([a], "--against"),
            ([a, "--against", b, "--json", "runs"], "exists already")):
        assert said in refused(experiments.main, ["compare", *words], capsys)
