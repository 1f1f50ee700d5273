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


@style
def perceptron(record: dict) -> Figure:
    """Clean error over the amount of data: both halves, the full budget and adapted ones.

    record is that of perceptron.py. The panels are of its smallest and its largest share of wrong
    labels. The bars are standard errors of the mean.
    """
    shares = sorted({row["flipped"] for row in record["rows"]})
    drawn = figure(4.2)
    drawn.suptitle("Toy model: small budgets make hard data useful, unless labels are wrong",
                   fontsize="large")
    grid = drawn.subplots(1, 2, sharey=True)
    for axes, share in zip(grid, (shares[0], shares[-1]), strict=True):
        for subset, color, marker in (("random", GREY, "o"), ("hard", RED, "^")):
            for budget, line, name in (("eps", "--", "the full budget"),
                                       ("adapted", "-", "a budget of at most the margin")):
                rows = [row for row in record["rows"] if (
                    row["flipped"], row["budget"], row["subset"]) == (share, budget, subset)]
                axes.errorbar([row["alpha"] for row in rows],
                              [1 - row["clean_accuracy"] for row in rows],
                              [row["clean_stderr"] for row in rows], fmt=marker + line, ms=5,
                              capsize=2, color=color, label=f"{subset} half, {name}")
        axes.set(xscale="log", yscale="log", title=f"{share:.0%} of the labels wrong",
                 xlabel="examples per dimension, before pruning")
        axes.set_xticks([2, 8, 32, 128], ["2", "8", "32", "128"])
        axes.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
        axes.minorticks_off()
    grid[0].set_ylabel("error without attack")
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                 fontsize="medium")
    return drawn


# --- geometry.py

CLASSES = (BLUE, ORANGE, GREEN, PURPLE, BLACK, SKY, RED, "#F0E442", "#661100", GREY)


@style
def maps(panels: list[tuple]) -> Figure:
    """t-SNE maps, one panel for each (row, labels [n], points [n, 2], classes).

    row is a row of geometry.py's record. Each of ten classes has a colour of its own; of more
    classes, colour and marker together tell them apart.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    drawn = figure(5 * lines)
    for panel, (row, labels, points, classes) in enumerate(panels, 1):
        axes = drawn.add_subplot(lines, columns, panel)
        for label, name in enumerate(classes):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=9, lw=0.6, label=short(name), color=CLASSES[label % 10],
                         marker="ox^+"[label // 10 % 4])
        axes.set(title="{name}: {n:,} of {examples:,} examples".format(**row), xticks=[],
                 yticks=[])
        axes.set(xlabel="t-SNE, first coordinate", ylabel="t-SNE, second coordinate")
        if len(classes) <= 20:
            axes.legend(markerscale=1.8, ncols=3 if columns > 1 else 5, loc="upper center",
                        bbox_to_anchor=(0.5, -0.06), handletextpad=0.2, columnspacing=1)
    return drawn


# --- studies

PUMA = {  # arm -> its name in Markdown
    "full": "all data", "random-0.3-from-start": "`--prune random`",
    "margin-0.3": "`--prune high` by margin", "puma-0.3": "`--prune puma`",
    "puma-floor-0.3": "`--prune puma`, `--eps-floor` eps/2",
    "keep-easy-0.3": "`--prune low` by margin"}


@style
def study(rows: list[dict], title: str, attack: str = "AutoAttack",
          names: dict[str, str] | None = None) -> Figure:
    """Both accuracies of each arm of a study, from 0 to 1: a dot for each seed, a bar at the mean.

    names: of the arms, if they differ from those in the rows.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    drawn = figure(0.38 * len(arms) + 1.4)
    axes = drawn.subplots()
    attacked = f"accuracy under {attack}, {rows[0]['n']:,} test images"
    for name, label, color in (("robust_accuracy", attacked, BLUE),
                               ("clean_accuracy", "accuracy without attack", ORANGE)):
        for line, arm in enumerate(arms):
            values = [row[name] for row in rows if row["arm"] == arm]
            axes.plot(values, [line] * len(values), "o", color=color, alpha=0.6, mec="none",
                      label=label if not line else None)
            axes.plot([np.mean(values)], [line], "|", color=BLACK, ms=14, mew=1.5,
                      label="mean" if not line and name == "clean_accuracy" else None)
    axes.set(xlabel="accuracy; a dot is one seed", xlim=(-0.02, 1.02), title=title)
    axes.set_yticks(range(len(arms)), [(names or {}).get(arm, arm).replace("`", "")
                                       for arm in arms])
    axes.grid(axis="y", lw=0.5, alpha=0.5)
    axes.margins(y=0.12)
    axes.invert_yaxis()
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


# --- accuracy against data and time

LOOKS = {"random": (ORANGE, "s"), "high": (BLUE, "o"), "low": (RED, "v"),
         "low+high": (PURPLE, "^")}
FRACTIONS = (0.2, 0.4, 0.6, 0.8)
LEAST_RANGE = 0.4  # of an axis of accuracies, so that small differences look small


def _line(axes: Any, table: dict, arms: dict[float, str], name: str, **how: Any) -> None:
    """Mean and standard deviation of those arms that are there, at their x."""
    there = {x: table[arm] for x, arm in arms.items() if arm in table}
    if there:
        axes.errorbar(list(there), [row[name] for row in there.values()],
                      [row[f"{name}_std"] for row in there.values()], capsize=3, lw=2,
                      elinewidth=1, **how)


def _panels(drawn: Figure, attack: str) -> dict[str, Any]:
    """The axes of robust and of clean accuracy, side by side, with one axis of accuracies."""
    grid = drawn.subplots(1, 2, sharey=True)
    for axes, title in zip(grid, (attack, "without attack"), strict=True):
        axes.set(title=title)
    grid[0].set_ylabel("accuracy")
    return {"robust_accuracy": grid[0], "clean_accuracy": grid[1]}


def _band(axes: Any, table: dict, name: str) -> None:
    """The runs on all data, as a band of a standard deviation to each side of the mean."""
    middle, deviation = table["full"][name], table["full"][f"{name}_std"]
    axes.axhspan(middle - deviation, middle + deviation, color=GREEN, alpha=0.2, lw=0)
    axes.axhline(middle, color=GREEN, lw=2, label="all data")


def _widen(axes: Any) -> None:
    """Let the axis of accuracies have LEAST_RANGE, and end at 1 at most."""
    low, high = axes.get_ylim()
    high = min(1, max(high, (low + high + LEAST_RANGE) / 2))
    axes.set_ylim(min(low, high - LEAST_RANGE), high)


@style
def pruning(rows: list[dict], title: str) -> Figure:
    """Figures 2, 3, 4 and 7: both accuracies against the fraction that is dropped."""
    drawn, table = figure(4), studies.summary(rows)
    drawn.suptitle(title, fontsize="large")
    for name, axes in _panels(drawn, "under AutoAttack").items():
        for place, (how, (color, marker)) in enumerate(LOOKS.items()):
            shift = 0.008 * (place - 1.5)  # so that no bar covers another
            _line(axes, table, {p + shift: f"{how}-{p}" for p in FRACTIONS}, name,
                  marker=marker, color=color, label=how)
        _band(axes, table, name)
        axes.set(xlabel="fraction dropped, p", xticks=FRACTIONS)
    _widen(axes)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return drawn


@style
def late(rows: list[dict]) -> Figure:
    """Figure 1: random pruning after some epochs less all data, by seed, with 95 % intervals."""
    drawn, epochs, found = figure(3.6), (0, 1, 3, 6), []
    axes = drawn.subplots()
    for p, color, marker, shift in ((0.1, BLUE, "o", -0.08), (0.3, ORANGE, "s", 0.08)):
        values = [claims.by_seed(rows, claims.less(f"random-{p}-after-{epoch}", "full"))
                  for epoch in epochs]
        middle = [of.mean() for of in values]
        low, high = np.transpose([claims.student(of) for of in values])
        axes.errorbar(np.arange(len(epochs)) + shift, middle, [middle - low, high - middle],
                      fmt=marker, ms=6, color=color, capsize=5, lw=2, label=f"p = {p}")
        found += values
    axes.axhline(0, color=GREEN, lw=2, zorder=0, label="all data")
    widest = max(LEAST_RANGE / 4, *np.abs(axes.get_ylim()))
    clear = claims.holm([claims.p_value(of) for of in found]).sum()
    axes.set(xlabel="pruned after epoch",
             ylabel="AutoAttack accuracy minus\nthat of all data (95 % intervals)",
             xticks=range(len(epochs)), xticklabels=epochs, ylim=(-widest, widest),
             title=f"MNIST, robust recipe, random pruning: {clear or 'none'} of {len(found)} "
             "differences is clear")
    axes.legend(loc="lower right", ncols=3, fontsize="medium")
    return drawn


@style
def schedules(rows: list[dict]) -> Figure:
    """Random pruning as the paper's authors ran it, with its schedule completed, fewer epochs."""
    ways = {"pruned, as the authors ran it": (RED, "s", "random-{p}"),
            "pruned, schedule completed": (BLUE, "o", "random-{p}, completed"),
            "fewer epochs on all data": (BLACK, "D", "full-{epochs}-epochs, completed")}
    drawn, table = figure(4), studies.summary(rows)
    pruned = [(p, epochs) for p, epochs in claims.CIFAR_EPOCHS if f"random-{p}" in table]
    drawn.suptitle("CIFAR-10, width 16: what a completed schedule gives", fontsize="large")
    for name, axes in _panels(drawn, "under apgd-ce").items():
        for shift, (way, (color, marker, arm)) in zip((-0.2, 0, 0.2), ways.items(), strict=True):
            places = {place + shift: arm.format(p=p, epochs=epochs)
                      for place, (p, epochs) in enumerate(pruned)}
            _line(axes, table, places, name, color=color, marker=marker, ms=8, label=way,
                  ls="none")
        _band(axes, table, name)
        axes.set(xlabel="fraction dropped, p", xticks=range(len(pruned)),
                 xticklabels=[p for p, _ in pruned], xlim=(-0.5, len(pruned) - 0.5))
    _widen(axes)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


@style
def wrong_labels(rows: list[dict]) -> Figure:
    """Both accuracies against the share of wrong labels, of three ways of equal cost."""
    ways = {"all data": (BLACK, "D"), "clean first": (BLUE, "o"), "oracle": (GREEN, "s")}
    drawn, table = figure(4), studies.summary(rows)
    drawn.suptitle("MNIST: dropping labels that look wrong, at equal cost", fontsize="large")
    for name, axes in _panels(drawn, "under PGD-20").items():
        for shift, (way, (color, marker)) in zip((0, -0.01, 0.01), ways.items(), strict=True):
            _line(axes, table, {share + shift: f"{way}, {share}" for share in claims.SHARES}, name,
                  color=color, marker=marker, ms=8, label=way)
        axes.set(xlabel="share of wrong labels", xticks=list(claims.SHARES), ylim=(0, 1.02))
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
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


def above(rows: list[dict], setup: str) -> list[str]:
    """The arms that are clearly more robust than fewer epochs at equal examples, by seed."""
    pairs = claims.at_equal_examples(rows, setup)
    clear = claims.holm([claims.p_value(values) for _, _, values in pairs])
    return [arm for (arm, _, values), sure in zip(pairs, clear, strict=True)
            if sure and values.mean() > 0]


@style
def frontier(rows: list[dict], title: str, setup: str) -> Figure:
    """AutoAttack accuracy against cost, of the four strategies and of fewer epochs."""
    drawn, points = figure(4.6), costs(rows)
    axes = drawn.subplots()
    lines = {"fewer epochs": (GREEN, "D", [arm for arm in points if arm.startswith("full")]),
             **{how: (*look, [f"{how}-{p}" for p in FRACTIONS])
                for how, look in LOOKS.items()}}
    for name, (color, marker, arms) in lines.items():
        if mine := sorted(points[arm] for arm in arms if arm in points):
            time, accuracy, deviation = np.transpose(mine)
            axes.errorbar(time, accuracy, deviation, fmt=f"{marker}-", color=color, capsize=2,
                          lw=2, elinewidth=1, label=name)
    _widen(axes)
    for p in FRACTIONS:  # the pruned arms of a p cost about the same
        if f"random-{p}" in points:
            axes.annotate(f"p = {p}", (points[f"random-{p}"][0], 0.02), ha="center",
                          xycoords=("data", "axes fraction"))
    found = ", ".join(above(rows, setup))
    axes.set(xlabel="cost: examples seen, plus scoring (all data = 1)",
             ylabel="AutoAttack accuracy", title=f"{title}: {found or 'no way to prune'} "
             f"{'are' if ',' in found else 'is'} clearly above fewer epochs")
    axes.legend(loc="lower right", fontsize="medium")
    return drawn


def _enough(rows: list[dict], *wanted: str) -> list[dict]:
    """Those of the arms with LEAST seeds; none if a wanted arm is not among two or more."""
    arms = {arm for arm, row in studies.summary(rows).items() if row["seeds"] >= studies.LEAST}
    return ([row for row in rows if row["arm"] in arms]
            if arms.issuperset(wanted) and len(arms) > 1 else [])


def _rows(experiment: str, setup: str, *wanted: str) -> Callable[[Records], list[dict]]:
    return lambda records: _enough(records.study(experiment, setup)["rows"], "full", *wanted)


ROWS: dict[str, Callable[[Records], list[dict]]] = {  # of each picture; none if too few
    "pruning-mnist": _rows("frontier", "mnist-robust"),
    "pruning-cifar10": _rows("frontier", "cifar10-width16"),
    "figure1": _rows("figure1", "mnist-robust", *studies.EXPERIMENTS["figure1"][0].arms),
    "frontier-digits": _rows("frontier", "digits"),
    "frontier-mnist": _rows("frontier", "mnist-robust"),
    "schedules": lambda records: _enough(claims.schedules(records), "full", "random-0.6",
                                         "random-0.6, completed"),
    "wrong-labels": lambda records: _enough(claims.wrong_shares(records), "clean first, 0.0",
                                            "clean first, 0.4")}


def _figure_of(name: str, draw: Callable[[list[dict]], Figure]
               ) -> Callable[[Records], Figure | None]:
    return lambda records: draw(rows) if (rows := ROWS[name](records)) else None


DRAW: dict[str, Callable[[list[dict]], Figure]] = {
    "pruning-mnist": partial(pruning, title="MNIST, robust recipe: the accuracy after pruning"),
    "pruning-cifar10": partial(pruning, title="CIFAR-10, width 16: the accuracy after pruning"),
    "figure1": late, "schedules": schedules, "wrong-labels": wrong_labels,
    "frontier-digits": partial(frontier, title="Digits, paper's recipe", setup="digits"),
    "frontier-mnist": partial(frontier, title="MNIST, robust recipe", setup="mnist-robust")}
FIGURES: dict[str, Callable[[Records], Figure | None]] = {  # None if too few records
    **{name: _figure_of(name, draw) for name, draw in DRAW.items()},
    "kernels": lambda records: speed.kernels(records["cpu-kernels"]),
    "scale": lambda records: (speed.scale(records["cpu-scale"]) if "cpu-scale" in records
                              else None),
    "puma-mnist": lambda records: study(
        records.study("puma", "mnist-pgd5")["rows"], "MNIST, p = 0.3", names=PUMA),
    "puma-cifar10-narrow": lambda records: study(
        records.study("puma", "cifar10-width4")["rows"], "CIFAR-10, network of width 4, p = 0.3",
        names=PUMA),
    "toy-robust-fragile": lambda records: plots.toy(records["toy-model"]),
    "toy-perceptron": lambda records: perceptron(records["perceptron"]),
}
