"""The verdicts and the front follow from the records by hand."""
import json

import numpy as np
import pytest
from scipy import stats

from experiments import claims, figures, studies, tables


def row(arm, seed, robust, clean=0.9, **more):
    return {"arm": arm, "seed": seed, "robust_accuracy": robust, "clean_accuracy": clean, **more}


def test_differences_are_paired_by_seed():
    rows = [row("a", 0, 0.5), row("b", 0, 0.4), row("a", 1, 0.9), row("b", 1, 0.7),
            row("a", 2, 0.1)]  # b has no seed 2
    found = claims.by_seed(rows, claims.less("a", "b"))
    np.testing.assert_allclose(found, [0.1, 0.2])
    both = (*claims.less("a", "b"), (2, "a", "clean_accuracy"))
    np.testing.assert_allclose(claims.by_seed(rows, both), [1.9, 2.0])


def test_the_interval_is_that_of_a_t_test():
    values = np.array([0.1, 0.4, 0.2, 0.25])
    low, high = claims.student(values)
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize(("values", "bound", "below", "says"), [
    ([0.1, 0.11, 0.12], 0, False, "holds"), ([0.1, 0.11, 0.12], 0, True, "does not hold"),
    ([-0.1, -0.11, -0.12], 0, True, "holds"), ([-0.1, -0.11, -0.12], 0, False, "does not hold"),
    ([0.1, 0.11, 0.12], 0.2, True, "holds"), ([0.1, -0.2, 0.3], 0, True, "cannot be told"),
    ([0.1, 0.11], 0, False, "not yet measured"), ([], 0, False, "not yet measured")])
def test_verdicts(values, bound, below, says):
    assert claims.verdict(np.array(values), bound, below).startswith(says)


def test_every_claim_is_about_runs_of_its_experiment():
    assert [bool(claim.terms) for claim in claims.CLAIMS] == [
        claim.values is None for claim in claims.CLAIMS]
    of_runs = [claim for claim in claims.CLAIMS if claim.terms]
    also = [claim._replace(setup=claim.beside) for claim in of_runs if claim.beside]
    for claim in of_runs + also:
        (part,) = (p for p in studies.EXPERIMENTS[claim.experiment] if p.setup == claim.setup)
        assert {arm for _, arm, _ in claim.terms} <= set(part.arms), claim
        assert part.seeds >= studies.LEAST


def test_a_claim_may_be_beside_another_setup_or_about_other_numbers(tmp_path):
    def study(experiment, setup):
        gains = {"one": [0.3, 0.2, 0.4], "two": [0.1, 0.2]}[setup]
        return {"rows": [row(arm, seed, 0.5 + gain * (arm == "a"))
                         for seed, gain in enumerate(gains) for arm in "ab"]}

    records = tables.Records(tmp_path)
    records.study = study
    claim = claims.Claim("", "", "", "one", claims.less("a", "b"), beside="two")
    np.testing.assert_allclose(claims.measured(claim, records), [0.2, 0.0])
    rows = [{"name": "mnist", "rho": 200}, {"name": "pruned mnist", "rho": 150},
            {"name": "pruned mnist", "rho": 100}]
    claim = claims.Claim("", "", "", "", values=claims.relative_to_mnist("rho"))
    assert not len(claims.measured(claim, records))
    (tmp_path / "geometry.json").write_text(json.dumps({"rows": rows}))
    np.testing.assert_allclose(claims.measured(claim, records), [-0.25, -0.5])


def test_arms_of_equal_time_have_seen_as_many_examples():
    for setup, pairs in claims.EQUAL.items():
        epochs = {"mnist-robust": 8, "digits": 30, "cifar10-width16": 15}[setup]
        for p, fewer in pairs.items():
            assert fewer == round(3 + (epochs - 3) * (1 - p))


def test_the_front_has_whatever_no_other_beats():
    points = {"slow": (1.0, 0.9, 0), "worse": (0.9, 0.7, 0), "fast": (0.5, 0.8, 0),
              "faster": (0.4, 0.8, 0), "same time": (0.4, 0.5, 0), "best": (1.2, 0.95, 0)}
    assert figures.front(points) == ["faster", "slow", "best"]


def test_time_is_examples_and_scoring():
    rows = [row("full", s, 0.8, examples=1000, train_seconds=10, prune_seconds=0) for s in (0, 1)]
    rows += [row("high-0.4", s, 0.6 + s / 10, examples=500, train_seconds=5, prune_seconds=1)
             for s in (0, 1)]
    found = figures.costs(rows)
    assert found["full"] == pytest.approx((1, 0.8, 0))
    assert found["high-0.4"] == pytest.approx((0.5 * 1.2, 0.65, np.std([0.6, 0.7], ddof=1)))
