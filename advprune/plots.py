"""The pictures of the scripts. Each function takes results and returns a matplotlib figure.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. A figure is 8
inches wide, so that its text stays legible in a column of 800 pixels.
"""
import os
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from advprune import ops

BLACK, GREY = "#000000", "#777777"
ORANGE, SKY, GREEN = "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
style = matplotlib.rc_context({
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium",
    "legend.frameon": False, "legend.fontsize": "small",
    "legend.labelspacing": 0.25})


def figure(height: float) -> Figure:
    """An empty figure, 8 inches wide."""
    return Figure(figsize=(8, height), dpi=150, layout="constrained")


def printable(name: str) -> str:
    """The name of a file or folder, which may be of any bytes, as text that can be drawn."""
    return os.fsencode(name).decode("utf-8", "replace").replace("$", r"\$")  # no formula


# --- images in a sheet


def short(name: str) -> str:
    """A class's name, cut to fit beside its picture."""
    return printable(name if len(name) <= 12 else f"{name[:11]}…")


def _picture(axes: Any, image: np.ndarray, x: float, y: float, marked: bool, above: str,
             below: str = "") -> None:
    """Draw an image uint8 [H, W, C], 0.85 large, its lower edge centred at (x, y), with texts.

    A marked image has an orange frame.
    """
    height, width = (0.85 * side / max(image.shape[:2]) for side in image.shape[:2])
    left = x - width / 2
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(left, left + width, y, y - height))
    axes.add_patch(Rectangle((left, y), width, -height, fill=False,
                             color=RED if marked else BLACK, linewidth=2.5 if marked else 0.5))
    for text, place, side, size in ((above, y - height - 0.05, "bottom", 7),
                                    (below, y + 0.05, "top", 6)):
        if text:
            axes.text(x, place, text, fontsize=size, horizontalalignment="center",
                      verticalalignment=side)


# --- train.py and prune.py


def _sheet(axes: Any, dataset: Any, scores: Tensor, dropped: np.ndarray, ids: Tensor,
           predict: Callable[[Tensor], Tensor]) -> None:
    """The examples `ids` in rows of 8. They share one axes: matplotlib is slow with 32 of them."""
    images = dataset.images[ids.to(dataset.labels.device)]
    guesses, names = predict(images).tolist(), [*dataset.classes, "none"]  # a guess of -1
    for k, (i, image) in enumerate(zip(ids.tolist(), images.cpu().permute(0, 2, 3, 1).numpy(),
                                       strict=True)):
        label, guess = (short(names[c]) for c in (dataset.labels[i], guesses[k]))
        file = os.path.basename(dataset.image_name(i))
        _picture(axes, image, k % 8, k // 8 * 1.6, dropped[i],
                 f"label {label}\npred. {guess}\nscore {scores[i]:.3g}",
                 printable(file if len(file) <= 16 else f"{file[:7]}…{file[-8:]}"))
    axes.set(xlim=(-0.5, 7.5), ylim=(1.75, -1.35))
    axes.axis("off")


def pruned(dataset: Any, scores: Tensor, kept: Tensor, predict: Callable[[Tensor], Tensor],
           title: str) -> Figure:
    """What pruning dropped: a histogram of scores [N], and the examples at both of its ends.

    Each example has its label and the class that predict([n, C, H, W] uint8) gives, and below it
    the name of its file, or its id. Figure 6 of Kaufmann et al. 2022 shows such examples as
    a sketch; these are real data.
    """
    scores, dropped = scores.cpu(), np.ones(len(scores), bool)
    dropped[kept.cpu().numpy()] = False
    drawn = figure(9)
    top, *sheets = (part.subplots() for part in drawn.subfigures(
        3, 1, squeeze=False, height_ratios=(2.4, 3.3, 3.3))[:, 0])
    edges = np.histogram_bin_edges(scores.numpy(), 80)
    top.hist(scores.numpy()[~dropped], edges, log=True, histtype="stepfilled", color=SKY,
             label=f"kept, {(~dropped).sum():,}")
    top.hist(scores.numpy()[dropped], edges, log=True, histtype="step", color=RED, lw=2,
             label=f"dropped, {dropped.sum():,}")  # an outline, which covers no bar
    top.set(xlabel="score", ylabel="training examples\n(log scale)",
            title=printable(title))
    top.spines[["top", "right"]].set_visible(False)
    top.legend(frameon=False)
    ranked = scores.argsort(descending=True)
    for axes, name, ids in zip(sheets, ("highest", "lowest"), (ranked, ranked.flip(0)),
                               strict=True):
        axes.set_title(f"Examples with the {name} scores, each above its id or file. "
                       "Orange frame: dropped", fontsize=10)
        _sheet(axes, dataset, scores, dropped, ids[:16], predict)
    return drawn


# --- evaluate.py


def attacked(images: Any, labels: Tensor, right: Tensor, robust: Tensor, adversarial: Tensor,
             predicted: Tensor, classes: Sequence[str], eps: float, title: str) -> Figure:
    """Up to 12 images beside what the attacks made of them; first those that were broken.

    images [n, C, H, W], bytes or in [0, 1]; labels [n]; right, robust [n] as an Evaluation has
    them; adversarial [n, C, H, W] and the classes predicted [n] for it. An image classified wrong
    without an attack is not shown. Differences are amplified: eps goes from grey to white.
    """
    ids = torch.cat([(right & ~robust).nonzero()[:, 0], robust.nonzero()[:, 0]])[:12]
    names, rows = [*classes, "none"], max(1, -(-len(ids) // 2))  # a prediction of -1
    drawn = figure(0.6 + 1.75 * rows)
    axes = drawn.subplots()
    x, adv = ops.pixels(images[ids.to(images.device)]), adversarial[ids]
    panels = torch.stack([x, adv, 0.5 + (adv - x) / (2 * eps or 1)], 1).clamp(0, 1)
    for k, (i, three) in enumerate(zip(ids.tolist(), (panels * 255).round().byte().cpu().permute(
            0, 1, 3, 4, 2).numpy(), strict=True)):
        label, guess = (short(names[c]) for c in (labels[i], predicted[i]))
        texts = f"label {label}\npred. {label}", f"attacked:\npred. {guess}", "difference"
        for j, (image, text) in enumerate(zip(three, texts, strict=True)):
            _picture(axes, image, k % 2 * 3.3 + j, k // 2 * 1.4, j == 1 and not robust[i], text,
                     "" if j else f"test image {i}")
    axes.set(xlim=(-0.5, 5.8), ylim=(1.4 * rows - 1.2, -1.2))
    axes.axis("off")
    axes.set_title(printable(title) + "\nOrange frame: broken. Difference: grey is 0, black "
                   f"-{eps:.3g}, white {eps:.3g}", fontsize=10)
    return drawn


# --- toy_model.py

def _classifiers(axes: Any, record: dict) -> None:
    """Accuracy over the attack's budget, of the two classifiers of section 5.2."""
    for name, color in (("fragile", RED), ("robust", BLUE)):
        rows = [row for row in record["accuracy"] if row["classifier"] == name]
        x = [row["eps"] / record["eta"] for row in rows]
        axes.plot(x, [row["closed_form"] for row in rows], color=color, label=f"{name}, exact")
        axes.plot(x, [row["simulated"] for row in rows], "o", ms=4, color=color,
                  label=f"{name}, simulated")
    axes.axhline(record["as_printed"], ls=":", color=GREY, label="robust, as printed")
    axes.set(xlabel="attack budget / eta", ylabel="accuracy under attack",
             title="An attack breaks the fragile classifier and leaves the robust one")
    axes.legend(loc="center right")


def _statements(axes: Any, record: dict) -> None:
    """In how many settings each statement about pruning holds, for each budget in training."""
    budgets = sorted({row["eps"] for row in record["verdicts"]})
    settings = [[row for row in record["verdicts"] if row["eps"] == eps] for eps in budgets]
    for shift, name, color, label in (
            (-0.2, "high_costs_standard_more", SKY,
             "dropping high losses costs accuracy without attack more than under attack"),
            (0.2, "low_hurts_both", ORANGE, "dropping low losses costs both")):
        counts = [sum(row[name] for row in rows) for rows in settings]
        bars = axes.bar(np.arange(len(budgets)) + shift, counts, 0.38, color=color, label=label)
        axes.bar_label(bars)
    axes.set(xlabel="attack budget in training / eta", xticks=range(len(budgets)),
             xticklabels=[f"{eps / record['eta']:g}" for eps in budgets],
             ylabel=f"settings, of {len(settings[0])}", ylim=(0, len(settings[0])),
             title="In how many settings the paper's two statements about pruning hold")
    axes.legend(loc="upper right")


@style
def toy(record: dict) -> Figure:
    """Section 5.2: its two classifiers, and its two statements about pruning by loss.

    record is that of toy_model.py.
    """
    drawn = figure(6.6)
    first, second = drawn.subplots(2, 1)
    _classifiers(first, record)
    _statements(second, record)
    return drawn
