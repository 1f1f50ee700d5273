"""The pictures of docs/evidence.md: the papers' figures, from our own runs."""
from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

from matplotlib.figure import Figure

from advprune import studies
from advprune.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, _figure, style
from advprune.tables import Records

LOOKS = {"random": (ORANGE, "s"), "high": (BLUE, "o"), "low": (RED, "v"),
         "low+high": (PURPLE, "^")}
PANELS = {"robust_accuracy": "AutoAttack accuracy", "clean_accuracy": "accuracy without attack"}


def _line(axes: Any, table: dict, arms: dict[float, str], name: str, **how: Any) -> None:
    """Mean and standard deviation of those arms that are there, at their x."""
    there = {x: table[arm] for x, arm in arms.items() if arm in table}
    if there:
        axes.errorbar(list(there), [row[name] for row in there.values()],
                      [row[f"{name}_std"] for row in there.values()], capsize=3, lw=2, **how)


def _band(axes: Any, table: dict, name: str) -> None:
    """The runs on all data, as a band of a standard deviation to each side of the mean."""
    middle, deviation = table["full"][name], table["full"][f"{name}_std"]
    axes.axhspan(middle - deviation, middle + deviation, color=GREEN, alpha=0.2, lw=0)
    axes.axhline(middle, color=GREEN, lw=2, label="all data")


@style
def pruning(rows: list[dict], title: str) -> Figure:
    """Figures 2, 3, 4 and 7: both accuracies against the fraction that is left."""
    figure, table = _figure(3.6), studies.summary(rows)
    for axes, (name, label) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for how, (color, marker) in LOOKS.items():
            _line(axes, table, {1 - p: f"{how}-{p}" for p in studies.FRACTIONS}, name,
                  marker=marker, color=color, label=how)
        _band(axes, table, name)
        axes.set(xlabel="fraction of the data left after pruning", ylabel=label,
                 title=title if name == "robust_accuracy" else "")
    axes.legend(loc="lower right")
    return figure


@style
def late(rows: list[dict]) -> Figure:
    """Figure 1: AutoAttack accuracy against the epoch of random pruning."""
    figure, table, epochs = _figure(3.4), studies.summary(rows), (0, 1, 3, 6)
    axes = figure.subplots()
    for p, shift, name in ((0.1, -0.03, "high"), (0.3, 0.03, "random")):  # so that both bars show
        color, marker = LOOKS[name]
        _line(axes, table, {e + shift: f"random-{p}-after-{e}" for e in epochs},
              "robust_accuracy", marker=marker, color=color, label=f"random, p = {p}")
    _band(axes, table, "robust_accuracy")
    axes.set(xlabel="pruned after epoch", ylabel="AutoAttack accuracy", xticks=epochs,
             title="MNIST, robust recipe")
    axes.legend(loc="lower right")
    return figure


def costs(rows: list[dict]) -> dict[str, tuple[float, float, float]]:
    """arm -> (time, mean, deviation) of AutoAttack accuracy; all data take the time 1.

    Time is examples seen and scoring, both as shares of the run on all data. Scoring is measured
    beside the same run's training, so that a busy machine slows both.
    """
    mine = {row["arm"]: [r for r in rows if r["arm"] == row["arm"]] for row in rows}
    whole, found = mean(row["examples"] for row in mine["full"]), {}
    for arm, row in studies.summary(rows).items():
        share = median(r["prune_seconds"] / r["train_seconds"] for r in mine[arm])
        found[arm] = (mine[arm][0]["examples"] / whole * (1 + share), row["robust_accuracy"],
                      row["robust_accuracy_std"])
    return found


def front(points: dict[str, tuple[float, float, float]]) -> list[str]:
    """The arms that no other beats in both time and mean accuracy, the fastest first."""
    best, names = -1.0, []
    order = sorted(points.items(), key=lambda item: (item[1][0], -item[1][1]))
    for arm, (_, accuracy, _) in order:
        if accuracy > best:
            best = accuracy
            names.append(arm)
    return names


KINDS = {"all data": (GREEN, "D"), **LOOKS, "other": (GREY, "x")}  # of an arm in the frontier


def _kind(arm: str) -> str:
    how = "all data" if arm.startswith("full") else arm.rpartition("-")[0]
    return how if how in KINDS else "other"


@style
def frontier(rows: list[dict], title: str) -> Figure:
    """AutoAttack accuracy against time, of every strategy, and the arms that none beats."""
    figure, points = _figure(5), costs(rows)
    axes = figure.subplots()
    for kind, (color, marker) in KINDS.items():
        if mine := [point for arm, point in points.items() if _kind(arm) == kind]:
            time, accuracy, deviation = zip(*mine, strict=True)
            axes.errorbar(time, accuracy, deviation, fmt=marker, color=color, capsize=2, lw=1,
                          label=kind)
    best = front(points)
    for arm in best:
        right = _kind(arm) == "all data"
        axes.annotate(arm.removeprefix("full-").replace("-", " "), points[arm][:2], fontsize=8,
                      xytext=(6 if right else -6, 3), textcoords="offset points",
                      horizontalalignment="left" if right else "right")
    axes.plot([points[arm][0] for arm in best], [points[arm][1] for arm in best], color=BLACK,
              lw=1, zorder=0, label="no arm is faster and better")
    axes.set(xlabel="time of training and scoring (all data = 1)", ylabel="AutoAttack accuracy",
             title=title)
    axes.legend(loc="lower right")
    return figure


def _rows(experiment: str, setup: str) -> Callable[[Records], list[dict]]:
    """The runs to draw: of arms with enough seeds, if those on all data and others are there."""
    def rows(records):
        study = records.study(experiment, setup)
        arms = {arm for arm, row in study["summary"].items() if row["seeds"] >= studies.LEAST}
        return ([row for row in study["rows"] if row["arm"] in arms]
                if "full" in arms and len(arms) > 1 else [])
    return rows


ROWS = {  # of each picture; none where there are too few
    "pruning-mnist": _rows("figure3", "mnist-robust"),
    "pruning-cifar10": _rows("figure4", "cifar10-width16"),
    "figure1": _rows("figure1", "mnist-robust"),
    "frontier-digits": _rows("frontier", "digits"),
    "frontier-mnist": _rows("frontier", "mnist-robust")}


def _figure_of(name: str, draw: Callable[[list[dict]], Figure]
               ) -> Callable[[Records], Figure | None]:
    return lambda records: draw(rows) if (rows := ROWS[name](records)) else None


DRAW: dict[str, Callable[[list[dict]], Figure]] = {
    "pruning-mnist": partial(pruning, title="MNIST, robust recipe"),
    "pruning-cifar10": partial(pruning, title="CIFAR-10, width 16"),
    "figure1": late,
    "frontier-digits": partial(frontier, title="Digits"),
    "frontier-mnist": partial(frontier, title="MNIST, robust recipe")}
FIGURES = {name: _figure_of(name, draw) for name, draw in DRAW.items()}  # of figures/
