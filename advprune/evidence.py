"""What the papers claim, and what our runs say: the tables of docs/evidence.md.

A claim is about a sum of accuracies of arms with signs, such as one arm less another. It is
computed for each seed, so that what a seed does to all arms cancels, and Student's 95 % interval
over seeds decides. Fewer than LEAST seeds decide nothing.
"""
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from advprune import curves, studies
from advprune.studies import LEAST
from advprune.tables import Records, _spread, _table

ROBUST, CLEAN = "robust_accuracy", "clean_accuracy"
SETUPS = {"mnist-paper": "MNIST, paper's recipe", "mnist-robust": "MNIST, robust recipe",
          "digits": "digits", "mnist-pgd5": "MNIST, PGD-5",
          "cifar10-width16": "CIFAR-10, width 16"}
NAMES = {"full": "all data", "small-step": "all data, `--alpha 0.2`"}

# Table 1 of Kaufmann et al. 2022: clean and AutoAttack accuracy in percent, mean and deviation.
PAPER = {
    "mnist": {"full": (97.67, 0.01, 70.05, 7.29), "random-0.2": (97.78, 1.00, 60.77, 11),
              "low+high-0.2": (94.10, 5.98, 67.43, 9.80),
              "random-0.6": (98.01, 0.12, 65.50, 0.013),
              "low+high-0.6": (94.60, 5.95, 70.11, 7.81)},
    "cifar10": {"full": (79.68, 0.27, 44.59, 0.27), "random-0.2": (73.26, 0.85, 39.63, 0.62),
                "low+high-0.2": (70.71, 1.42, 37.84, 1.11),
                "random-0.6": (64.04, 1.48, 33.54, 1.30),
                "low+high-0.6": (50.64, 2.09, 25.32, 1.43)}}


# setup -> p -> the epochs in which all data are as many examples as pruning p after epoch 3
EQUAL = {"mnist-robust": {0.2: 7, 0.4: 6, 0.6: 5, 0.8: 4},
         "digits": {0.2: 25, 0.4: 19, 0.6: 14, 0.8: 8},
         "cifar10-width16": {0.4: 10, 0.6: 8}}


PICTURES = {  # of figures/: what it shows, and the experiment
    "pruning-mnist": ("MNIST, robust recipe: accuracy against the data left (figures 2, 3 and 7)",
                      "figure3"),
    "pruning-cifar10": ("CIFAR-10, width 16: accuracy against the data left (figure 4)",
                        "figure4"),
    "figure1": ("MNIST: when to prune (figure 1)", "figure1")}


class Claim(NamedTuple):
    """`terms` summed is above `bound`; or below it, where `below` is set."""

    source: str
    says: str
    experiment: str
    setup: str
    terms: tuple[tuple[float, str, str], ...]  # weight, arm, accuracy
    bound: float = 0.0
    below: bool = False


def _less(one: str, other: str, accuracy: str = ROBUST) -> tuple:
    return (1, one, accuracy), (-1, other, accuracy)


def _claims() -> list[Claim]:
    made = []
    for setup in ("mnist-paper", "mnist-robust"):
        made += [
            Claim("4.4", "low+high at p = 0.6 is more robust than all data", "table1", setup,
                  _less("low+high-0.6", "full")),
            Claim("4.4, table 1", "low+high at p = 0.6 is more robust than random", "table1",
                  setup, _less("low+high-0.6", "random-0.6"))]
    cifar = "cifar10-width16"
    made += [
        Claim("4.2, figure 1", "random, p = 0.3: pruning after epoch 6 gains less than 2 points "
              "over epoch 3", "figure1", "mnist-robust",
              _less("random-0.3-after-6", "random-0.3-after-3"), 0.02, True),
        Claim("4.3, figure 2", "random at p = 0.8 costs robust accuracy", "figure2",
              "mnist-robust", _less("random-0.8", "full"), 0, True),
        Claim("4.5", "random at p = 0.4 costs less than 8 points of robust accuracy", "figure4",
              cifar, _less("random-0.4", "full"), -0.08),
        Claim("4.5", "dropping low losses costs robust accuracy, against random at p = 0.4",
              "figure4", cifar, _less("low-0.4", "random-0.4"), 0, True),
        Claim("4.5", "dropping low losses costs clean accuracy, against random at p = 0.4",
              "figure4", cifar, _less("low-0.4", "random-0.4", CLEAN), 0, True),
        Claim("4.5", "dropping high losses costs more clean than robust accuracy, against random "
              "at p = 0.4", "figure4", cifar,
              (*_less("high-0.4", "random-0.4", CLEAN), *_less("random-0.4", "high-0.4")), 0,
              True),
        Claim("4.5", "high costs less than 2 points of robust accuracy, against random at p = 0.4",
              "figure4", cifar, _less("high-0.4", "random-0.4"), -0.02),
        Claim("A.1, figure 7", "low+high at p = 0.6 is less robust than random", "table1", cifar,
              _less("low+high-0.6", "random-0.6"), 0, True),
        Claim("PUMA, abstract", "PUMA at p = 0.3 is within 2 points of the robust accuracy of all "
              "data", "puma", "mnist-pgd5", _less("puma-0.3", "full"), -0.02)]
    for setup in ("mnist-pgd5", cifar):
        made += [
            Claim("PUMA, abstract", "dropping high margins is more robust than random, p = 0.3",
                  "puma", setup, _less("margin-0.3", "random-0.3-from-start")),
            Claim("PUMA, abstract", "PUMA has a higher clean accuracy than all data", "puma",
                  setup, _less("puma-0.3", "full", CLEAN))]
    made += [Claim("ours", f"{how} at p = {p} is more robust than all data for as many examples",
                   "frontier", setup, _less(f"{how}-{p}", f"full-{EQUAL[setup][p]}-epochs"))
             for setup in ("digits", "mnist-robust") for p in (0.4, 0.6)
             for how in ("random", "low+high")]
    return made


CLAIMS = _claims()


def by_seed(rows: list[dict], terms: tuple) -> np.ndarray:
    """The sum of the terms [seeds], of the seeds that have all arms."""
    value = {(row["arm"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return np.array([
        sum(weight * value[arm, seed][accuracy] for weight, arm, accuracy in terms)
        for seed in seeds if all((arm, seed) in value for _, arm, _ in terms)])


def interval(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values [n], n > 1."""
    spread = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return float(values.mean() - spread), float(values.mean() + spread)


def _measured(values: np.ndarray) -> str:
    """The mean of values [n] and its interval; a dash where they are too few for a verdict."""
    if len(values) < LEAST:
        return "—"
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(values.mean(), *interval(values))


def verdict(values: np.ndarray, bound: float, below: bool) -> str:
    """Whether the mean of values [n] is above the bound (or below it)."""
    if len(values) < LEAST:
        return "not yet measured"
    low, high = interval(values)
    if low <= bound <= high:
        return "cannot be told: the interval has both sides"
    return "holds" if (high < bound) == below else "does not hold"


def claims(records: Records) -> str:
    rows = []
    for claim in CLAIMS:
        values = by_seed(records.study(claim.experiment, claim.setup)["rows"], claim.terms)
        said = verdict(values, claim.bound, claim.below)
        if len(values) < LEAST:
            said += f": `python reproduce.py {claim.experiment} --jobs 2`"
        sign = "<" if claim.below else ">"
        rows.append([claim.source, claim.says, SETUPS[claim.setup], f"{sign} {claim.bound:g}",
                     _measured(values), str(len(values)), said])
    return _table(["source", "claim", "on", "difference asked", "measured (95 % interval)",
                   "seeds", "verdict"], rows, left=7)


def table1(records: Records) -> str:
    """Table 1, ours beside the paper's."""
    text = []
    for part in studies.EXPERIMENTS["table1"]:
        study, rows = records.study("table1", part.setup), []
        for arm in part.arms:
            clean, _, attacked, deviation = PAPER[part.dataset].get(arm, (0, 0, 0, 0))
            paper = ([f"{clean / 100:.3f}", f"{attacked / 100:.3f} ± {deviation / 100:.3f}"]
                     if clean else ["", ""])
            row, name = study["summary"].get(arm, {"seeds": 0}), NAMES.get(arm, arm)
            if row["seeds"] < 2:
                rows.append([name, str(row["seeds"]), "not yet measured", "", "", *paper])
                continue
            robust = [r[ROBUST] for r in study["rows"] if r["arm"] == arm]
            rows.append([name, str(row["seeds"]), _spread(row, CLEAN), _spread(row, ROBUST),
                         f"{min(robust):.3f}", *paper])
        text.append(f"**{SETUPS[part.setup]}**\n\n" + _table(
            ["training", "seeds", "clean", "AutoAttack", "least", "paper: clean", "AutoAttack"],
            rows) + f"\nAutoAttack standard on the first {part.n} test images; mean ± standard "
            f"deviation over seeds; the paper's are of 30 runs.{study['source']}")
    return "\n".join(text)


def equal_time(records: Records) -> str:
    """Each pruned arm less all data for as many examples, by seed."""
    text = []
    for setup, pairs in EQUAL.items():
        rows = records.study("frontier", setup)["rows"]
        if setup == "cifar10-width16":
            rows = [*rows, *records.study("figure4", setup)["rows"]]
        table = []
        for p, epochs in pairs.items():
            for arm in dict.fromkeys(row["arm"] for row in rows):
                if not re.fullmatch(rf"[a-z+]+-{p}(-running|-balanced)?", arm):
                    continue
                clean, robust = (by_seed(rows, _less(arm, f"full-{epochs}-epochs", accuracy))
                                 for accuracy in (CLEAN, ROBUST))
                if len(robust) >= LEAST:
                    table.append([arm, f"{epochs} epochs", str(len(robust)), _measured(clean),
                                  _measured(robust)])
        if table:
            text.append(f"**{SETUPS[setup]}**\n\n" + _table(
                ["pruned after epoch 3", "all data for", "seeds", "clean: difference",
                 "AutoAttack: difference"], table))
    if not text:
        return "Not yet measured: `python reproduce.py frontier --jobs 2`.\n"
    return "\n".join(text) + (
        "\nAbove 0 the pruned run is better. Both have seen as many examples; the scoring is not "
        "counted. Means and 95 % intervals over seeds (`python reproduce.py frontier --jobs "
        "2`).\n")


def frontier(records: Records) -> str:
    """Time and accuracy of every strategy, and which of them no other beats."""
    text = []
    for name, setup in (("digits", "digits"), ("mnist", "mnist-robust")):
        rows = curves.ROWS[f"frontier-{name}"](records)
        points = curves.costs(rows) if rows else {}
        best = curves.front(points)
        table = [[f"**{arm}**" if arm in best else arm, f"{time:.2f}",
                  f"{mean:.3f} ± {spread:.3f}", str(sum(row["arm"] == arm for row in rows))]
                 for arm, (time, mean, spread) in sorted(points.items(), key=lambda at: at[1][0])]
        text.append(f"**{SETUPS[setup]}**\n\n" + (
            f"![AutoAttack accuracy against time](../figures/frontier-{name}.png)\n\n"
            + _table(["training", "time", "AutoAttack", "seeds"], table)
            if table else "Not yet measured: `python reproduce.py frontier --jobs 2`.\n"))
    return "\n".join(text) + (
        "\nTime is that of training and scoring; all data take 1. Bold: no other is faster and "
        "at least as accurate. Margins and PUMA's budgets need a trained network first, which is "
        "not counted.\n")


def figures(records: Records) -> str:
    """The pictures that there are records for, and the commands of the others."""
    text = ""
    for name, (says, command) in PICTURES.items():
        text += (f"![{says}](../figures/{name}.png)\n\n{says}. Dots are means over seeds, bars "
                 f"standard deviations.\n(`python reproduce.py {command} --jobs 2`)\n\n"
                 if curves.ROWS[name](records) else
                 f"{says}: not yet measured: `python reproduce.py {command} --jobs 2`.\n\n")
    return text


BLOCKS: dict[str, Callable[[Records], str]] = {
    "claims": claims, "table1": table1, "equal-time": equal_time, "frontier": frontier,
    "figures": figures}
