"""`perceptron` against closed forms and Monte Carlo."""
import json

import numpy as np
import pytest
from conftest import inside, refused
from scipy.stats import norm

from experiments import __main__ as experiments
from experiments import perceptron


def test_agreement_is_the_angle_and_the_orthant():
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, 5))
    cosine = u @ w / np.linalg.norm(u) / np.linalg.norm(w)
    assert perceptron.agreement(w, u) == pytest.approx(1 - np.arccos(cosine) / np.pi, abs=1e-9)
    assert perceptron.agreement(3 * u, u, 0.5) == pytest.approx(2 * norm.cdf(-0.5), abs=1e-6)
    x = rng.standard_normal((100_000, 5))
    robust = (np.sign(x @ u) * (x @ w) > 0.3 * np.linalg.norm(w)).sum()
    assert inside(robust, 100_000, perceptron.agreement(w, u, 0.3))


def test_logistic_training_meets_every_budget_of_its_own():
    rng = np.random.default_rng(0)
    yx, eps = rng.standard_normal((200, 3)) + 0.3, rng.uniform(0, 0.5, 200)

    def worst(w):
        margin = yx @ w - eps * np.linalg.norm(w)
        return np.logaddexp(0, -margin).mean() + 1e-4 * w @ w

    best = perceptron.train_logistic(yx, eps)
    for size in (0.3, 0.03):
        for _ in range(200):
            assert worst(best) <= worst(best + size * rng.standard_normal(3)) + 1e-6


def test_the_script_writes_its_record_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(perceptron, "ALPHAS", (2, 4))
    monkeypatch.setattr(perceptron, "FLIPPED", (0.0, 0.1))
    monkeypatch.setattr(perceptron, "REPEATS", 2)
    record = experiments.main(["perceptron", "--seed", "3", "--out", "here"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert record["seed"] == 3
    assert len(record["rows"]) == 2 * 2 * 4 * 3
    shown = [line.split() for line in lines if line.split()[1:3] == ["eps", "hard"]]
    rows = [row for row in record["rows"] if (row["budget"], row["subset"]) == ("eps", "hard")]
    assert [row[3:] for row in shown] == [
        [f"{row['clean_accuracy']:.3f}" for row in rows if row["flipped"] == flipped]
        for flipped in perceptron.FLIPPED]
    assert (tmp_path / "here/perceptron.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "here/perceptron.json").read_text())
    assert written | record == written
    assert written["command"] == "python -m experiments perceptron --seed 3 --out here"


def test_an_existing_folder_is_refused(capsys):
    assert "exists already" in refused(perceptron.main, ["--out", "."], capsys)
