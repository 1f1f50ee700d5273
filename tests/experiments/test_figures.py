"""The pictures: they show the rows that they are given, and name what their axes are."""
import numpy as np
import pytest

from experiments import figures


def row(arm, seed, robust, clean=0.9, **more):
    return {"arm": arm, "seed": seed, "robust_accuracy": robust, "clean_accuracy": clean, **more}


def test_study_shows_a_dot_for_each_seed_and_the_mean():
    rows = [{"arm": arm, "seed": seed, "n": 500, "robust_accuracy": robust + seed / 100,
             "clean_accuracy": 0.9} for arm, robust in (("full", 0.5), ("puma", 0.4))
            for seed in range(3)]
    figure = figures.study(rows, "mnist")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["full", "puma"]
    seeds, mean = left.lines[2:4]  # of puma
    np.testing.assert_allclose(seeds.get_xdata(), [0.4, 0.41, 0.42])
    np.testing.assert_allclose(mean.get_xdata(), [0.41])
    assert "AutoAttack, 500" in left.get_xlabel() and "without attack" in right.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one seed", "mean"]


@pytest.mark.parametrize("count", [1, 4])
def test_maps_show_every_example_once_with_its_class(count):
    labels, points = np.arange(12), np.arange(24.0).reshape(12, 2)
    row = {"name": "set", "n": 12, "examples": 99, "rho": 1.0, "delta": 2.0}
    classes = [f"class {k}" for k in range(12)]
    figure = figures.maps([(row, labels, points, classes)] * count)
    assert len(figure.axes) == count
    for axes in figure.axes:
        drawn = np.concatenate([dots.get_offsets() for dots in axes.collections])
        np.testing.assert_allclose(np.sort(drawn, axis=0), points)
        looks = {(tuple(dots.get_facecolor().ravel()), dots.get_paths()[0].vertices.tobytes())
                 for dots in axes.collections}
        assert len(looks) == 12  # no two classes look the same
        assert [text.get_text() for text in axes.get_legend().get_texts()] == classes


def test_the_front_has_whatever_no_other_beats():
    points = {"slow": (1.0, 0.9, 0), "worse": (0.9, 0.7, 0), "fast": (0.5, 0.8, 0),
              "faster": (0.4, 0.8, 0), "same time": (0.4, 0.5, 0), "best": (1.2, 0.95, 0)}
    assert figures.front(points) == ["faster", "slow", "best"]


def test_the_frontier_names_each_way_once_and_the_best_arms():
    rows = [row(arm, seed, robust, examples=examples, train_seconds=1, prune_seconds=0)
            for arm, robust, examples in (
                ("full", 0.9, 10), ("full-4-epochs", 0.8, 4), ("full-3-epochs", 0.6, 4),
                ("low+high-0.4", 0.7, 2), ("low+high-0.6", 0.6, 3), ("high-0.4-running", 0.6, 6),
                ("random-0.4-6-epochs", 0.5, 8)) for seed in (0, 1)]
    axes, = figures.frontier(rows, "title").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "no arm is faster and better", "all data", "low+high", "other"]
    assert {text.get_text(): text.xy for text in axes.texts} == {
        "low+high 0.4": (0.2, 0.7), "4 epochs": (0.4, 0.8), "full": (1, 0.9)}


def test_time_is_examples_and_scoring():
    rows = [row("full", s, 0.8, examples=1000, train_seconds=10, prune_seconds=0) for s in (0, 1)]
    rows += [row("high-0.4", s, 0.6 + s / 10, examples=500, train_seconds=5, prune_seconds=1)
             for s in (0, 1)]
    found = figures.costs(rows)
    assert found["full"] == pytest.approx((1, 0.8, 0))
    assert found["high-0.4"] == pytest.approx((0.5 * 1.2, 0.65, np.std([0.6, 0.7], ddof=1)))
