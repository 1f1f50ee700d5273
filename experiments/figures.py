"""The pictures of figures/: the papers' figures, from our own runs."""
from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from advprune import plots
from advprune.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    figure,
    short,
    style,
)
from benchmarks import figures as speed
from experiments import claims, studies
from experiments.records import Records

# --- perceptron.py

SUBSETS = {"all": (BLACK, "s"), "random": (GREY, "o"), "easy": (SKY, "v"), "hard": (RED, "^")}
BUDGETS = {"none": "no attack in training", "eps": "budget {eps} for all",
           "adapted": "budget min({eps}, margin)"}


@style
def perceptron(record: dict) -> Figure:
    """Clean error over the amount of data, for each budget and share of wrong labels.

    record is that of perceptron.py. The bars are standard errors of the mean.
    """
    flipped = list(dict.fromkeys(row["flipped"] for row in record["rows"]))
    drawn = figure(8)
    grid = drawn.subplots(len(flipped), len(BUDGETS), sharex=True, sharey=True, squeeze=False)
    for line, share in zip(grid, flipped, strict=True):
        for axes, (budget, title) in zip(line, BUDGETS.items(), strict=True):
            for subset, (color, marker) in SUBSETS.items():
                rows = [row for row in record["rows"] if (
                    row["flipped"], row["budget"], row["subset"]) == (share, budget, subset)]
                half = "all data" if subset == "all" else f"{subset} {record['keep']:.0%} kept"
                axes.errorbar([row["alpha"] for row in rows],
                              [1 - row["clean_accuracy"] for row in rows],
                              [row["clean_stderr"] for row in rows], marker=marker, ms=4,
                              lw=1.2, capsize=2, color=color, label=half)
            axes.set(xscale="log", yscale="log", title=f"{title.format(**record)}\n"
                     f"{share:.0%} of the labels wrong")
        line[0].set_ylabel("error without attack")
    for axes in grid[-1]:
        axes.set_xlabel("examples per dimension\nbefore pruning")
        axes.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
        axes.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
        axes.minorticks_off()
    drawn.legend(handles=grid[0, 0].get_legend_handles_labels()[0], ncols=len(SUBSETS),
                  loc="outside upper center", fontsize="medium")
    return drawn


# --- geometry.py


@style
def maps(panels: list[tuple]) -> Figure:
    """t-SNE maps, one panel for each (row, labels [n], points [n, 2], classes).

    row is a row of geometry.py's record. Colour and marker together tell the classes apart.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    drawn = figure(5 * lines)
    colors = (BLUE, ORANGE, GREEN, PURPLE, BLACK)
    for panel, (row, labels, points, classes) in enumerate(panels, 1):
        axes = drawn.add_subplot(lines, columns, panel)
        for label, name in enumerate(classes):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=9, lw=0.6, label=short(name),
                         color=colors[(label + label // 5) % 5], marker="ox^+"[label // 5 % 4])
        axes.set(title="{name}: {n:,} of {examples:,} examples\nrho {rho:.1f}, delta {delta:.3f}"
                 .format(**row), xticks=[], yticks=[])
        axes.set(xlabel="t-SNE, first coordinate", ylabel="t-SNE, second coordinate")
        if len(classes) <= 20:
            axes.legend(markerscale=1.8, ncols=3 if columns > 1 else 5, loc="upper center",
                        bbox_to_anchor=(0.5, -0.06), handletextpad=0.2, columnspacing=1)
    return drawn


# --- studies


@style
def study(rows: list[dict], title: str, attacked: str = "") -> Figure:
    """Both accuracies of each arm of a study: a dot for each seed, a bar at the mean."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    drawn = figure(0.38 * len(arms) + 1.5)
    drawn.suptitle(title, fontsize="large")
    attacked = attacked or "accuracy under AutoAttack, {n:,} test images".format(**rows[0])
    panels = {"robust_accuracy": attacked,
              "clean_accuracy": "accuracy without attack, all test images"}
    grid = drawn.subplots(1, 2, sharey=True)
    for axes, (name, label) in zip(grid, panels.items(), strict=True):
        for line, arm in enumerate(arms):
            values = [row[name] for row in rows if row["arm"] == arm]
            axes.plot(values, [line] * len(values), "o", color=BLUE, alpha=0.6, mec="none",
                      label="one seed" if not line else None)
            axes.plot([np.mean(values)], [line], "|", color=RED, ms=16, mew=2.5,
                      zorder=1, label="mean" if not line else None)
        axes.set(xlabel=label)
        axes.locator_params(axis="x", nbins=5)
        axes.set_yticks(range(len(arms)), arms)
        axes.grid(axis="y", lw=0.5, alpha=0.5)
        axes.margins(y=0.12)
    grid[0].invert_yaxis()
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  fontsize="medium")
    return drawn



# --- accuracy against data and time

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
    drawn, table = figure(3.6), studies.summary(rows)
    for axes, (name, label) in zip(drawn.subplots(1, 2), PANELS.items(), strict=True):
        for how, (color, marker) in LOOKS.items():
            _line(axes, table, {1 - p: f"{how}-{p}" for p in studies.FRACTIONS}, name,
                  marker=marker, color=color, label=how)
        _band(axes, table, name)
        axes.set(xlabel="fraction of the data left after pruning", ylabel=label,
                 title=title if name == "robust_accuracy" else "")
    axes.legend(loc="lower right")
    return drawn


@style
def late(rows: list[dict]) -> Figure:
    """Figure 1: AutoAttack accuracy against the epoch of random pruning."""
    drawn, table, epochs = figure(3.4), studies.summary(rows), (0, 1, 3, 6)
    axes = drawn.subplots()
    for p, shift, name in ((0.1, -0.03, "high"), (0.3, 0.03, "random")):  # so that both bars show
        color, marker = LOOKS[name]
        _line(axes, table, {e + shift: f"random-{p}-after-{e}" for e in epochs},
              "robust_accuracy", marker=marker, color=color, label=f"random, p = {p}")
    _band(axes, table, "robust_accuracy")
    axes.set(xlabel="pruned after epoch", ylabel="AutoAttack accuracy", xticks=epochs,
             title="MNIST, robust recipe")
    axes.legend(loc="lower right")
    return drawn


@style
def schedules(rows: list[dict]) -> Figure | None:
    """Random pruning as the paper's authors ran it, with its schedule completed, fewer epochs."""
    ways = {"pruned, as the authors ran it": (RED, "s", "random-{p}"),
            "pruned, schedule completed": (BLUE, "o", "random-{p}, completed"),
            "fewer epochs on all data": (BLACK, "D", "full-{epochs}-epochs, completed")}
    table = studies.summary(rows)
    table = {arm: row for arm, row in table.items() if row["seeds"] >= studies.LEAST}
    if not {"full", "random-0.6", "random-0.6, completed"} <= table.keys():
        return None
    drawn = figure(3.4)
    panels = {"clean_accuracy": "accuracy without attack",
              "robust_accuracy": "accuracy under apgd-ce"}
    for axes, (name, label) in zip(drawn.subplots(1, 2), panels.items(), strict=True):
        for shift, (way, (color, marker, arm)) in zip((-0.2, 0, 0.2), ways.items(), strict=True):
            places = {place + shift: arm.format(p=p, epochs=epochs)
                      for place, (p, epochs) in enumerate(((0.2, 13), (0.6, 8)))}
            _line(axes, table, places, name, color=color, marker=marker, ms=9, label=way,
                  ls="none")
        _band(axes, table, name)
        axes.set(ylabel=label, xticks=(0, 1), xticklabels=("20 % dropped", "60 % dropped"),
                 xlim=(-0.5, 1.5))
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


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
    drawn, points = figure(5), costs(rows)
    axes = drawn.subplots()
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
    return drawn


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
FIGURES: dict[str, Callable[[Records], Figure | None]] = {  # None where there are too few records
    **{name: _figure_of(name, draw) for name, draw in DRAW.items()},
    "schedules": lambda records: schedules(claims.schedules(records)),
    "kernels": lambda records: speed.kernels(records["cpu-kernels"]),
    "scale": lambda records: (speed.scale(records["cpu-scale"]) if "cpu-scale" in records
                              else None),
    "puma-mnist": lambda records: study(records.study("puma", "mnist-pgd5")["rows"],
                                        "MNIST, p = 0.3"),
    "puma-cifar10-narrow": lambda records: study(records.study("puma", "cifar10-width4")["rows"],
                                                 "CIFAR-10, narrow network, p = 0.3"),
    "toy-robust-fragile": lambda records: plots.toy(records["toy-model"]),
    "toy-perceptron": lambda records: perceptron(records["perceptron"]),
}
