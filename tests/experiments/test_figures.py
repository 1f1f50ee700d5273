"""The pictures: they show the rows that they are given, and name what their axes are."""
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from advprune import plots
from experiments import figures, tables
from experiments.records import Records


def row(arm, seed, robust, clean=0.9, **more):
    return {"arm": arm, "seed": seed, "robust_accuracy": robust, "clean_accuracy": clean, **more}


def test_study_shows_a_dot_for_each_seed_and_the_mean_from_0_to_1():
    rows = [row(arm, seed, robust + seed / 100, n=500)
            for arm, robust in (("full", 0.5), ("puma", 0.4)) for seed in range(3)]
    figure = figures.study(rows, "mnist", names={"puma": "`--prune puma`"})
    axes, = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["full", "--prune puma"]
    seeds, mean = axes.lines[2:4]  # of puma, under attack
    np.testing.assert_allclose(seeds.get_xdata(), [0.4, 0.41, 0.42])
    np.testing.assert_allclose(mean.get_xdata(), [0.41])
    assert axes.get_xlim()[0] <= 0 and axes.get_xlim()[1] >= 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "accuracy under AutoAttack, 500 test images", "accuracy without attack", "mean"]


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
        assert len({look[0] for look in looks}) == 10  # and ten have ten colours
        assert [text.get_text() for text in axes.get_legend().get_texts()] == classes


def timed(arm, seed, robust, examples):
    return row(arm, seed, robust, examples=examples, train_seconds=1, prune_seconds=0)


@pytest.mark.parametrize(("gains", "says"), [
    ((0.1, 0.11, 0.12), "random-0.4 is clearly above"),
    ((0.1, -0.1, 0.3), "no way to prune is clearly above"),
    ((-0.1, -0.11, -0.12), "no way to prune is clearly above")])
def test_the_frontier_says_what_beats_fewer_epochs(gains, says):
    rows = []
    for seed, gain in enumerate(gains):
        fewer = 0.4 + seed / 10
        rows += [timed("full", seed, 0.6, 30), timed("full-19-epochs", seed, fewer, 19),
                 timed("random-0.4", seed, fewer + gain, 19)]
    axes, = figures.frontier(rows, "Digits", "digits").axes
    assert says in axes.get_title()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "fewer epochs", "random"]
    low, high = axes.get_ylim()
    assert high - low >= figures.LEAST_RANGE and high <= 1


def test_figure_1_shows_differences_by_seed_with_their_intervals():
    rows = [row("full", seed, 0.5 + seed / 10) for seed in range(3)]
    rows += [row(f"random-{p}-after-{epoch}", seed, 0.5 + seed / 10 - p / 10 + (seed - 1) / 50)
             for p in (0.1, 0.3) for epoch in (0, 1, 3, 6) for seed in range(3)]
    axes, = figures.late(rows).axes
    (dots, _, (bars,)), *_ = axes.containers
    np.testing.assert_allclose(np.array(dots.get_ydata(), float), 4 * [-0.01])
    half = stats.t.ppf(0.975, 2) * 0.02 / 3**0.5
    for bar in bars.get_segments():
        np.testing.assert_allclose(bar[:, 1], [-0.01 - half, -0.01 + half])
    assert "none of 8 differences" in axes.get_title()


def test_the_toy_picture_counts_as_its_table_does():
    records = Records(ROOT / "results")
    _, axes = plots.toy(records["toy-model"]).axes
    counts = [[int(bar.get_height()) for bar in bars] for bars in axes.containers]
    table = tables.toy_verdicts(records).splitlines()
    total = next(line for line in table if line.startswith("| all"))
    assert [f"{sum(of)} of 30" for of in counts] == total.split(" | ")[2:4]


def test_time_is_examples_and_scoring():
    rows = [row("full", s, 0.8, examples=1000, train_seconds=10, prune_seconds=0) for s in (0, 1)]
    rows += [row("high-0.4", s, 0.6 + s / 10, examples=500, train_seconds=5, prune_seconds=1)
             for s in (0, 1)]
    found = figures.costs(rows)
    assert found["full"] == pytest.approx((1, 0.8, 0))
    assert found["high-0.4"] == pytest.approx((0.5 * 1.2, 0.65, np.std([0.6, 0.7], ddof=1)))
