"""All pictures. Each function takes results and returns a matplotlib figure.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. A figure is 8
inches wide, so that its text stays legible in a column of 800 pixels.
"""
import os
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
GREY = "#777777"
style = matplotlib.rc_context({
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium",
    "legend.frameon": False, "legend.fontsize": "small",
    "legend.labelspacing": 0.25})


def _figure(height: float) -> Figure:
    return Figure(figsize=(8, height), dpi=150, layout="constrained")


# --- train.py and prune.py


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}…"


def _sheet(axes: Any, dataset: Any, scores: Tensor, dropped: np.ndarray, ids: Tensor,
           predict: Callable[[Tensor], Tensor]) -> None:
    """The examples `ids` in rows of 8. They share one axes: matplotlib is slow with 32 of them."""
    images = dataset.images[ids.to(dataset.labels.device)]
    guesses = predict(images).tolist()
    for k, (i, image) in enumerate(zip(ids.tolist(), images.cpu().permute(0, 2, 3, 1).numpy(),
                                       strict=True)):
        height, width = (0.85 * side / max(image.shape[:2]) for side in image.shape[:2])
        left, bottom = k % 8 - width / 2, k // 8 * 1.5
        axes.imshow(image, cmap="gray", vmin=0, vmax=255,
                    extent=(left, left + width, bottom, bottom - height))
        axes.add_patch(Rectangle((left, bottom), width, -height, fill=False,
                                 color=RED if dropped[i] else BLACK,
                                 linewidth=2.5 if dropped[i] else 0.5))
        label, guess = (_short(dataset.classes[c]) for c in (dataset.labels[i], guesses[k]))
        axes.text(k % 8, bottom - height - 0.05,
                  f"label {label}\npred. {guess}\nscore {scores[i]:.3g}", fontsize=7.5,
                  horizontalalignment="center", verticalalignment="bottom")
    axes.set(xlim=(-0.5, 7.5), ylim=(1.55, -1.35))
    axes.axis("off")


def pruned(dataset: Any, scores: Tensor, kept: Tensor, predict: Callable[[Tensor], Tensor],
           title: str) -> Figure:
    """What pruning dropped: a histogram of scores [N], and the examples at both of its ends.

    Each example has its label and the class that predict([n, C, H, W] uint8) gives. Figure 6 of
    Kaufmann et al. 2022 shows such examples as a sketch; these are real data.
    """
    scores, dropped = scores.cpu(), np.ones(len(scores), bool)
    dropped[kept.cpu().numpy()] = False
    figure = _figure(9)
    top, *sheets = (part.subplots() for part in figure.subfigures(
        3, 1, squeeze=False, height_ratios=(2.4, 3.3, 3.3))[:, 0])
    edges = np.histogram_bin_edges(scores.numpy(), 80)
    for members, name, color in ((~dropped, "kept", BLUE), (dropped, "dropped", RED)):
        top.hist(scores.numpy()[members], edges, log=True, histtype="stepfilled", alpha=0.6,
                 color=color, label=f"{name}, {members.sum():,}")
    top.set(xlabel="score", ylabel="training examples\n(log scale)",
            title=os.fsencode(title).decode("utf-8", "replace"))  # a path may be of any bytes
    top.spines[["top", "right"]].set_visible(False)
    top.legend(frameon=False)
    ranked = scores.argsort(descending=True)
    for axes, name, ids in zip(sheets, ("highest", "lowest"), (ranked, ranked.flip(0)),
                               strict=True):
        axes.set_title(f"Examples with the {name} scores. Orange frame: dropped", fontsize=10)
        _sheet(axes, dataset, scores, dropped, ids[:16], predict)
    return figure


# --- toy_model.py

STRATEGIES = {"high": (SKY, 5), "low+high": (BLUE, 1.5), "low": (RED, 1.5), "random": (GREY, 1.5)}


def _classifiers(axes: Any, record: dict) -> None:
    """Accuracy over the attack's budget, of the two classifiers of section 5.2."""
    for name, color in (("fragile", RED), ("robust", BLUE)):
        rows = [row for row in record["accuracy"] if row["classifier"] == name]
        x = [row["eps"] / record["eta"] for row in rows]
        axes.plot(x, [row["closed_form"] for row in rows], color=color, label=name)
        axes.plot(x, [row["simulated"] for row in rows], "o", ms=4, color=color)
    axes.axhline(record["as_printed"], ls=":", color=GREY, label="robust, as printed")
    axes.set(xlabel="attack budget / eta", ylabel="accuracy under attack",
             title="The two classifiers of section 5.2\n(line: exact, dot: simulated)")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.5))


def _retrained(axes: Any, record: dict, k: float, names: dict[str, str]) -> None:
    """Columns of record["retrained"] at budget k eta over p, a line for each strategy."""
    for how, (color, width) in STRATEGIES.items():
        rows = [row for row in record["retrained"]
                if row["eps"] == k * record["eta"] and row["prune"] in ("none", how)]
        for name, line in names.items():
            axes.plot([row["p"] for row in rows], [row[name] for row in rows], line, lw=width,
                      ms=4, color=color)
    axes.set(xlabel="fraction of the data dropped, p")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8])


@style
def toy(record: dict) -> Figure:
    """Section 5.2: its two classifiers, and what pruning by loss changes.

    record is that of toy_model.py. Lines are exact; dots, where there are any, are simulated.
    """
    figure = _figure(8.4)
    (first, second), *rest = figure.subplots(3, 2)
    _classifiers(first, record)
    _retrained(second, record, 2, {"robust_share_closed_form": "-", "robust_share": "o"})
    second.set(ylabel="share of D_robust\nin the kept data",
               title="What is kept at budget 2 eta\n(line: exact, dot: simulated)")
    for axes, k in zip(np.ravel(rest), (0.25, 0.5, 0.75, 2), strict=True):
        _retrained(axes, record, k, {"standard_closed_form": "-", "robust_closed_form": "--"})
        axes.set(ylabel="accuracy", title=f"Pruned and trained again at budget {k} eta")
    lines = [Line2D([], [], color=color, lw=width, label=f"{how} dropped")
             for how, (color, width) in STRATEGIES.items()]
    kinds = [Line2D([], [], color=BLACK, ls=line, label=label)
             for line, label in (("-", "without attack"), ("--", "under attack"))]
    second.legend(handles=lines)
    for axes, loc in zip(np.ravel(rest), ((0.42, 0.1), *["best"] * 3), strict=True):
        axes.legend(handles=lines + kinds, loc=loc)
    return figure


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
    figure = _figure(8)
    grid = figure.subplots(len(flipped), len(BUDGETS), sharex=True, sharey=True, squeeze=False)
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
    figure.legend(handles=grid[0, 0].get_legend_handles_labels()[0], ncols=len(SUBSETS),
                  loc="outside upper center", fontsize="medium")
    return figure


# --- geometry.py


@style
def maps(panels: list[tuple]) -> Figure:
    """t-SNE maps, one panel for each (row, labels [n], points [n, 2], classes).

    row is a row of geometry.py's record. Colour and marker together tell the classes apart.
    """
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = _figure(5 * lines)
    colors = (BLUE, ORANGE, GREEN, PURPLE, BLACK)
    for panel, (row, labels, points, classes) in enumerate(panels, 1):
        axes = figure.add_subplot(lines, columns, panel)
        for label, name in enumerate(classes):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=9, lw=0.6, label=_short(name),
                         color=colors[(label + label // 5) % 5], marker="ox^+"[label // 5 % 4])
        axes.set(title="{name}: {n:,} of {examples:,} examples\nrho {rho:.1f}, delta {delta:.3f}"
                 .format(**row), xticks=[], yticks=[])
        axes.set(xlabel="t-SNE, first coordinate", ylabel="t-SNE, second coordinate")
        if len(classes) <= 20:
            axes.legend(markerscale=1.8, ncols=3 if columns > 1 else 5, loc="upper center",
                        bbox_to_anchor=(0.5, -0.06), handletextpad=0.2, columnspacing=1)
    return figure


# --- reproduce.py


@style
def study(rows: list[dict], title: str) -> Figure:
    """Both accuracies of each arm of a study: a dot for each seed, a bar at the mean."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = _figure(0.38 * len(arms) + 1.5)
    figure.suptitle(title, fontsize="large")
    panels = {"robust_accuracy": "accuracy under AutoAttack, {n:,} test images".format(**rows[0]),
              "clean_accuracy": "accuracy without attack, all test images"}
    grid = figure.subplots(1, 2, sharey=True)
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
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  fontsize="medium")
    return figure


# --- benchmark.py


@style
def kernels(record: dict) -> Figure:
    """How many times as long an alternative of each operator takes, at its least and largest size.

    record is that of `benchmark.py kernels`.
    """
    rows = []
    for name, says, others in (
            ("rs_start + fgsm_step", "RS+FGSM start and step", ("eager",)),
            ("augment", "crop and flip", ("eager", "reference")),
            ("select_kept", "selection", ("topk",))):
        mine = sorted((row["n"], other, row[other]) for row in record["rows"]
                       for other in others if row["operator"] == name and other in row)
        rows += [(f"{says}, {n:,} elements\nagainst "
                  + ("torch.topk" if other == "topk" else "plain torch"), ratio)
                 for n, other, ratio in (mine if len(mine) < 2 else (mine[0], mine[-1]))]
    figure = _figure(0.55 * len(rows) + 1)
    axes = figure.subplots()
    bars = axes.barh(range(len(rows)), [ratio for _, ratio in rows], 0.6, color=BLUE)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1, color=RED, lw=1.5)
    axes.text(1, -0.6, " 1: as fast as the kernel", color=RED, va="bottom")
    axes.set(xlabel="time of the alternative / time of the kernel",
             title=f"{record['device']}, {record['threads']} threads\n")
    axes.invert_yaxis()
    return figure


FIGURES: dict[str, Callable] = {  # of figures/, from records
    "kernels": lambda records: kernels(records["cpu-kernels"]),
    "puma-mnist": lambda records: study(records.study("puma", "mnist-pgd5")["rows"],
                                        "MNIST, p = 0.3"),
    "puma-cifar10-narrow": lambda records: study(records.study("puma", "cifar10-width4")["rows"],
                                                 "CIFAR-10, narrow network, p = 0.3"),
    "toy-robust-fragile": lambda records: toy(records["toy-model"]),
    "toy-perceptron": lambda records: perceptron(records["perceptron"]),
}
