"""toy_model.py against closed forms, enumeration and Monte Carlo."""
import json
from itertools import product

import numpy as np
import pytest
from conftest import inside, refused
from scipy.stats import norm

import toy_model
from toy_model import Toy


@pytest.mark.parametrize("toy", [Toy(), Toy(7, 0.3, 0.9, 0.6, 0.5), Toy(1, 1.0, 1.0, 0.5)])
def test_sample_has_the_stated_frequencies(toy):
    toy, n = toy.checked(), 20_000
    x, y, from_robust = toy_model.sample(n, *toy, rng=3)
    assert x.shape == (n, toy.d + 1) and set(np.unique(y)) == {-1, 1} and from_robust.dtype == bool
    assert inside((y == 1).sum(), n, 0.5) and inside(from_robust.sum(), n, toy.p_R)
    for part, p in ((from_robust, toy.p_robust), (~from_robust, toy.p_fragile)):
        assert inside((x[part, 0] == y[part]).sum(), part.sum(), p)
    weak = x[:, 1:] * y[:, None]
    assert abs(weak.mean() - toy.eta) < 4 / weak.size**0.5
    assert abs(weak.std() - 1) < 4 / weak.size**0.5


def test_accuracy_is_the_formula_of_the_two_classifiers():
    toy = Toy(50, 0.6, 0.97, 0.7).checked()
    fragile, robust = np.r_[0, np.full(50, 1 / 50)], np.r_[1, np.zeros(50)]
    for eps in (0, 0.2, toy.eta, 2 * toy.eta, 0.99):
        assert toy_model.accuracy(fragile, eps, toy) == pytest.approx(
            norm.cdf((toy.eta - eps) * 50**0.5), abs=1e-12)
        assert toy_model.accuracy(robust, eps, toy) == 0.6 * 0.97 + 0.4 * 0.7
    assert toy_model.accuracy(robust, 1.0, toy) == 0  # a budget of 1 takes the strong feature too
    assert toy_model.accuracy(0 * robust, 0, toy) == 0


@pytest.mark.parametrize("seed", range(3))
def test_simulation_agrees_with_the_closed_form_for_any_weights(seed):
    rng = np.random.default_rng(seed)
    toy = Toy(12, 0.5, 0.9, 0.6, 0.4).checked()
    pairs = [(rng.normal(0.3, 1, 13), eps) for eps in (0, 0.05, 0.2)]
    for count, (w, eps) in zip(toy_model.simulate(pairs, 100_000, toy, rng), pairs, strict=True):
        assert inside(count, 100_000, toy_model.accuracy(w, eps, toy))


def test_training_minimises_the_loss_at_the_worst_corner():
    x, y, _ = toy_model.sample(300, 2, 0.7, 0.95, 0.8, 1.0, rng=0)
    x, eps = x.astype(float), 0.4
    corners = eps * np.array(list(product((-1, 1), repeat=3)))  # a convex loss is worst at one

    def worst(w):
        return ((y[:, None] - (x[:, None] + corners) @ w) ** 2).max(1).mean()

    best = toy_model.train_squared(x.astype(np.float32), y, eps)
    rng = np.random.default_rng(1)
    for size in (0.3, 0.03, 0.003):
        for _ in range(200):
            assert worst(best) <= worst(best + size * rng.standard_normal(3)) + 1e-5


def test_a_budget_of_two_eta_leaves_the_strong_feature_alone():
    x, y, _ = toy_model.sample(4000, *Toy(), rng=0)
    w = toy_model.train_squared(x, y, 0.6)
    assert w[0] > 0.3 and not w[1:].any()


def test_share_of_the_kept_by_hand_and_by_simulation():
    toy, p = Toy(9, 0.7, 0.95, 0.8, 1.0), 0.05
    strong = np.r_[0.5, np.zeros(9)]
    # the wrong ones are 0.095, of which 0.035 are robust: 0.05 of them go
    by_hand = (0.7 - 0.05 * 0.035 / 0.095) / 0.95
    assert toy_model.robust_share(strong, "high", p, toy) == pytest.approx(by_hand, abs=1e-5)
    by_hand = (0.7 - 0.05 * 0.665 / 0.905) / 0.95
    assert toy_model.robust_share(strong, "low", p, toy) == pytest.approx(by_hand, abs=1e-5)
    assert toy_model.robust_share(strong, "random", p, toy) == 0.7
    x, y, from_robust = toy_model.sample(100_000, *toy, rng=5)
    mixed = np.r_[0.5, np.linspace(0, 0.1, 9)]
    for how, p in product(("high", "low", "low+high"), (0.1, 0.5, 0.8)):
        kept = toy_model.keep(x, y, mixed, how, p, 0)
        assert len(kept) == round((1 - p) * 100_000)
        share = toy_model.robust_share(mixed, how, p, toy)
        assert inside(from_robust[kept].sum(), len(kept), share), (how, p)


def test_the_script_reports_what_it_simulated(tmp_path, monkeypatch, capsys):
    command = ["--n", "20000", "--d", "40", "--seed", "7", "--out", "toy"]
    record = toy_model.main(command)
    lines = capsys.readouterr().out.strip().splitlines()
    for row in record["accuracy"]:
        assert inside(round(row["simulated"] * 20000), 20000, row["closed_form"])
        assert row["interval"][0] <= row["simulated"] <= row["interval"][1]
    for row in record["retrained"]:
        for name in ("standard", "robust"):
            assert inside(round(row[name] * 20000), 20000, row[f"{name}_closed_form"])
    assert record["fragile_above_99_percent"] and record["fragile_below_1_percent_from_2_eta"]
    assert record["simulation_rejects_as_printed"]
    for verdict in ("high_costs_standard_more", "low_hurts_both"):
        count = sum(row[verdict] for row in record["verdicts"])
        assert sum(f"in {count} of 30 settings" in line for line in lines) >= 1
    assert (tmp_path / "toy/toy_model.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "toy/toy_model.json").read_text())
    assert written == record
    assert written["command"] == "python toy_model.py --n 20000 --d 40 --seed 7 --out toy"
    assert "toy exists already" in refused(toy_model.main, [*command, "--eta", "1"], capsys)


@pytest.mark.parametrize("flags", [
    "--p-fragile 0.9 --p-robust 0.8", "--p-robust 1.2", "--p-fragile 0.4", "--p-R -0.1",
    "--p-R 1.1", "--d 0", "--d -3", "--eta 0", "--eta -1", "--p-R nan", "--n 5",
    "perceptron"])
def test_bad_parameters_are_refused_in_one_sentence(flags, capsys):
    refused(toy_model.main, flags.split(), capsys)
    if "p-f" in flags:
        with pytest.raises(ValueError):
            toy_model.sample(10, 5, 0.5, 0.6, 0.4 if "0.4" in flags else 0.9)
