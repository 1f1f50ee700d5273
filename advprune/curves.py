"""The pictures of docs/evidence.md: the papers' figures, from our own runs."""
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from advprune import studies
from advprune.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, _figure, style
from advprune.tables import Records

LOOKS = {"random": (ORANGE, "s"), "high": (BLUE, "o"), "low": (RED, "v"),
         "low+high": (PURPLE, "^")}
PANELS = {"robust_accuracy": "AutoAttack accuracy", "clean_accuracy": "accuracy without attack"}


def _spread(rows: Iterable[dict], name: str) -> tuple[float, float]:
    values = [row[name] for row in rows]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _of(rows: list[dict], arm: str) -> list[dict]:
    return [row for row in rows if row["arm"] == arm]


def _band(axes: Any, rows: list[dict], name: str) -> None:
    """The runs on all data, as a band of a standard deviation to each side of the mean."""
    mean, deviation = _spread(_of(rows, "full"), name)
    axes.axhspan(mean - deviation, mean + deviation, color=GREEN, alpha=0.2, lw=0)
    axes.axhline(mean, color=GREEN, lw=2, label="all data")


@style
def pruning(rows: list[dict], title: str) -> Figure:
    """Figures 2, 3, 4 and 7: both accuracies against the fraction that is left."""
    figure = _figure(3.6)
    for axes, (name, label) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for how, (color, marker) in LOOKS.items():
            points = [(1 - p, *_spread(mine, name)) for p in studies.FRACTIONS
                      if (mine := _of(rows, f"{how}-{p}"))]
            if points:
                x, mean, deviation = zip(*points, strict=True)
                axes.errorbar(x, mean, deviation, marker=marker, color=color, capsize=3, lw=2,
                              label=how)
        _band(axes, rows, name)
        axes.set(xlabel="fraction of the data left after pruning", ylabel=label,
                 title=title if name == "robust_accuracy" else "")
    axes.legend(loc="lower right")
    return figure


@style
def late(rows: list[dict]) -> Figure:
    """Figure 1: AutoAttack accuracy against the epoch of random pruning."""
    figure = _figure(3.4)
    axes = figure.subplots()
    for p, (color, marker) in zip((0.1, 0.3), (LOOKS["high"], LOOKS["random"]), strict=True):
        points = [(e, *_spread(mine, "robust_accuracy")) for e in (0, 1, 3, 6)
                  if (mine := _of(rows, f"random-{p}-after-{e}"))]
        x, mean, deviation = zip(*points, strict=True)
        axes.errorbar(x, mean, deviation, marker=marker, color=color, capsize=3, lw=2,
                      label=f"random, p = {p}")
    _band(axes, rows, "robust_accuracy")
    axes.set(xlabel="pruned after epoch", ylabel="AutoAttack accuracy", title="MNIST")
    axes.legend(loc="lower right")
    return figure


def costs(rows: list[dict]) -> dict[str, tuple[float, float, float]]:
    """arm -> (time, mean, deviation) of AutoAttack accuracy; all data take the time 1.

    Time is examples seen and scoring, both as shares of the run on all data. Scoring is measured
    beside the same run's training, so that a busy machine slows both.
    """
    whole = float(np.mean([row["examples"] for row in _of(rows, "full")]))
    found = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = _of(rows, arm)
        share = np.median([row["prune_seconds"] / row["train_seconds"] for row in mine])
        found[arm] = (float(mine[0]["examples"] / whole * (1 + share)),
                      *_spread(mine, "robust_accuracy"))
    return found


def front(points: dict[str, tuple[float, float, float]]) -> list[str]:
    """The arms that no other beats in both time and mean accuracy, the fastest first."""
    best, names = -1.0, []
    for arm, (_, mean, _) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if mean > best:
            best = mean
            names.append(arm)
    return names


@style
def frontier(rows: list[dict]) -> Figure:
    """AutoAttack accuracy against time, of every strategy, and the arms that none beats."""
    figure, points = _figure(5), costs(rows)
    axes = figure.subplots()
    for arm, (time, mean, deviation) in points.items():
        all_data = arm.startswith("full")
        axes.errorbar([time], [mean], [deviation], marker="D" if all_data else "o",
                      color=GREEN if all_data else GREY, capsize=2, lw=1)
    best = front(points)
    axes.plot([points[arm][0] for arm in best], [points[arm][1] for arm in best], color=BLUE,
              lw=1.5, label="no arm is faster and better")
    for arm in best:
        axes.annotate(arm, points[arm][:2], fontsize=8, xytext=(5, -10),
                      textcoords="offset points")
    axes.set(xlabel="time of training and scoring (all data = 1)", ylabel="AutoAttack accuracy",
             title="MNIST, robust recipe (diamond: all data, fewer epochs)")
    axes.legend(loc="lower right")
    return figure


def _pruning(experiment: str, setup: str, title: str) -> Callable[[Records], Figure | None]:
    def draw(records):
        rows = records.study(experiment, setup)["rows"]
        arms = {row["arm"] for row in rows}
        return pruning(rows, title) if "full" in arms and len(arms) > 1 else None
    return draw


def _late(records: Records) -> Figure | None:
    rows = records.study("figure1", "mnist-robust")["rows"]
    wanted = set(studies.EXPERIMENTS["figure1"][0].arms)
    return late(rows) if wanted <= {row["arm"] for row in rows} else None


def _frontier(records: Records) -> Figure | None:
    rows = records.study("frontier", "mnist-robust")["rows"]
    return frontier(rows) if any(row["arm"] != "full" for row in rows) else None


# of figures/, from records; None where there are none yet
FIGURES: dict[str, Callable[[Records], Figure | None]] = {
    "pruning-mnist": _pruning("figure3", "mnist-robust", "MNIST, robust recipe"),
    "pruning-cifar10": _pruning("figure4", "cifar10-width16", "CIFAR-10, width 16"),
    "figure1": _late, "frontier": _frontier}
