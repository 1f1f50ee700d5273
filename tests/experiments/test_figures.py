"""The pictures: they show the rows that they are given, and name what their axes are."""
import numpy as np
import pytest
from conftest import ROOT, row

from advprune import plots
from experiments import figures, tables
from experiments.records import Records


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
