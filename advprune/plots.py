"""What is drawn. Each function takes results and returns a matplotlib figure.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def pruned(dataset: Any, scores: Tensor, kept: Tensor, predict: Callable[[Tensor], Tensor],
           title: str) -> Figure:
    """What pruning dropped: a histogram of scores [N], and the examples at both of its ends.

    The examples have their label and the class that predict([n, C, H, W] uint8) gives: Figure 6 of
    Kaufmann et al. 2022, in real data.
    """
    scores, dropped = scores.cpu(), np.ones(len(scores), bool)
    dropped[kept.cpu().numpy()] = False
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    top, *sheets = figure.subfigures(3, 1, height_ratios=(3, 2.2, 2.2))
    axes, values = top.subplots(), scores.numpy()
    edges = np.histogram_bin_edges(values, 80)
    for members, name, color in ((~dropped, "kept", BLUE), (dropped, "dropped", RED)):
        axes.hist(values[members], edges, log=True, histtype="stepfilled", alpha=0.5, color=color,
                  label=f"{name}, {members.sum():,}")
    axes.set(xlabel="score", ylabel="examples (log scale)")
    axes.set_title(_drawable(title), parse_math=False)
    axes.legend()
    ranked = scores.argsort(descending=True)
    ends = ("highest", ranked[:20]), ("lowest", ranked.flip(0)[:20])
    for sheet, (name, ids) in zip(sheets, ends, strict=True):
        sheet.suptitle(f"The {name} scores: label, prediction, score. A red frame: dropped",
                       fontsize="medium")
        images = dataset.images[ids.to(dataset.labels.device)]
        predicted = predict(images).tolist()
        for axes, i, image, guess in zip(sheet.subplots(2, 10).flat, ids.tolist(),
                                         images.cpu().permute(0, 2, 3, 1).numpy(), predicted,
                                         strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            label, guess = (dataset.classes[k] for k in (dataset.labels[i], guess))
            axes.set_title(_drawable(f"label {label}\npred. {guess}\n{scores[i]:.3g}"),
                           fontsize=6, pad=2, parse_math=False)
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color=RED if dropped[i] else BLACK, linewidth=2 if dropped[i] else 0.5)
    return figure


def _drawable(text):
    """The text without what a path may hold and a font cannot: bytes that are no letters."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def kernels(record: dict) -> Figure:
    """How many times as long an alternative of each operator takes, at its least and largest size.

    record is that of `benchmark.py kernels`.
    """
    rows = []
    for name, other in (("rs_start + fgsm_step", "eager"), ("augment", "eager"),
                        ("select_kept", "topk")):
        mine = sorted((row for row in record["rows"] if row["operator"] == name and other in row),
                      key=lambda row: row["n"])
        rows += [(f"{name}, {row['n']:,}\nagainst {other}", row[other])
                 for row in (mine if len(mine) < 2 else (mine[0], mine[-1]))]
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in rows], [ratio for _, ratio in rows], color=BLUE)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1, color=BLACK, linewidth=0.8)
    axes.set(xlabel="times as long as the kernel", title=record["device"])
    axes.invert_yaxis()
    return figure


def front(record: dict) -> Figure:
    """Robust accuracy, and examples seen, against the fraction dropped: `reproduce.py pruning`."""
    rows = record["rows"]
    full = [row for row in rows if row["arm"] == "full"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for how, color, marker in (("random", ORANGE, "s"), ("high", BLUE, "o")):
        arms = [(p, [row for row in rows if row["prune"] == how and row["p"] == p])
                for p in sorted({row["p"] for row in rows if row["prune"] == how})]
        x = [p for p, _ in arms]
        accuracy = [[row["robust_accuracy"] for row in mine] for _, mine in arms]
        left.errorbar(x, [np.mean(a) for a in accuracy], [np.std(a, ddof=1) for a in accuracy],
                      marker=marker, color=color, capsize=3, lw=2, label=f"--prune {how}")
        right.plot(x, [mine[0]["examples"] / full[0]["examples"] for _, mine in arms],
                   marker=marker, color=color, lw=2, label=f"--prune {how}",
                   linestyle="-" if how == "high" else "--")
    values = [row["robust_accuracy"] for row in full]
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    left.axhspan(mean - deviation, mean + deviation, color=GREEN, alpha=0.2, lw=0)
    left.axhline(mean, color=GREEN, lw=2, label="all data")
    right.axhline(1, color=GREEN, lw=2, label="all data")
    left.set(xlabel="p, fraction of the data dropped", ylabel="AutoAttack accuracy", ylim=0)
    right.set(xlabel="p, fraction of the data dropped", ylim=0,
              ylabel="training examples seen (all data = 1)")
    left.legend(loc="lower left")
    return figure


FIGURES: dict[str, Callable] = {  # of figures/, from records
    "front": lambda records: front(records["pruning-digits"]),
}
