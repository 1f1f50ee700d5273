"""`geometry`: density and separation by hand, its pictures, and the score files it takes."""
import json

import numpy as np
import pytest
import torch
from conftest import refused

from advprune import data, pruning, run
from experiments import __main__ as experiments
from experiments import geometry


def images(rows):
    return torch.tensor(rows, dtype=torch.uint8).view(len(rows), 1, 1, -1)


def test_density_and_separation_by_hand():
    x = images([[0, 10], [20, 10], [100, 50], [100, 70], [100, 90]])
    labels = torch.tensor([0, 0, 4, 4, 4])
    scale = x.numpy().std()
    rho, delta = geometry.density_and_separation(x, labels)
    # class 0: radius 10 about (10, 10); class 4: radii 20, 0, 20 about (100, 70)
    assert rho == pytest.approx((2 / (10 / scale) + 3 / (40 / 3 / scale)) / 2, rel=1e-5)
    # two pixels; each centroid is the other's nearest
    assert delta == pytest.approx(2 * (90**2 + 60**2) / 2 / scale**2, rel=1e-5)


def test_the_farthest_hundredth_of_each_class_is_cut():
    rng = np.random.default_rng(0)
    x = rng.integers(90, 110, (400, 6)).tolist()
    spoiled = [row[:] for row in x]
    spoiled[3], spoiled[7] = [255] * 6, [0] * 6  # 2 of class 1's 200
    labels = torch.arange(400) % 2
    clean, cut, uncut = (geometry.density_and_separation(images(rows), labels, share)[0] * scale
                         for rows, share in ((x, 0.01), (spoiled, 0.01), (spoiled, 0.0))
                         for scale in [1 / images(rows).numpy().std()])
    assert cut == pytest.approx(clean, rel=0.02) and uncut < 0.95 * clean


def test_the_script_describes_a_set_and_what_a_score_file_keeps(tmp_path):
    labels = data.load("digits").labels
    scores = torch.rand(len(labels), generator=torch.Generator().manual_seed(0))
    kept = pruning.select(scores, "low+high", 0.4)
    run.write_scores("scores.npz", scores, labels, kept, "loss")
    words = ["synthetic", "digits", "--pruned", "scores.npz", "--n", "100", "--out", "here"]
    record = experiments.main(["geometry", *words])
    written = json.loads((tmp_path / "here/geometry.json").read_text())
    assert written | record == written
    assert written["command"] == f"python -m experiments geometry {' '.join(words)}"
    names = [(row["name"], row["examples"]) for row in record["rows"]]
    assert names == [("synthetic", 2000), ("digits", 1438), ("pruned digits", len(kept))]
    assert record["rows"][2]["rho"] < record["rows"][1]["rho"]  # fewer, at random as far apart
    assert (tmp_path / "here/tsne.png").stat().st_size > 10_000


def test_a_score_file_of_another_set_is_refused(capsys):
    run.write_scores("scores.npz", torch.rand(5), torch.zeros(5), torch.arange(3), "loss")
    assert "scores.npz" in refused(geometry.main, ["digits", "--pruned", "scores.npz"], capsys)


@pytest.mark.parametrize("kept", [[0, 2000], [3], [], [0.5]])
def test_a_score_file_that_keeps_nothing_to_describe_is_refused(kept, capsys):
    labels = data.load("synthetic").labels
    np.savez("scores.npz", scores=np.zeros(2000, np.float32), labels=labels.numpy(), kept=kept)
    said = refused(geometry.main, ["synthetic", "--pruned", "scores.npz"], capsys)
    assert "scores.npz does not say which" in said or "needs two classes" in said


@pytest.mark.slow
def test_statistics_of_the_real_sets_stand_near_table_2(real_data):
    folder = real_data("cifar-10-batches-py")
    cifar = data.load("cifar10", folder)
    rho, delta = geometry.density_and_separation(cifar.images, cifar.labels)
    assert rho == pytest.approx(96.6625, rel=0.05) and delta == pytest.approx(0.3571, rel=0.05)
