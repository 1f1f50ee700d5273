"""What the papers claim, and whether our runs agree.

A claim is about a sum of accuracies of arms with signs, such as one arm less another. It is
computed for each seed, so that what a seed does to all arms cancels, and Student's 95 % interval
over seeds decides. Fewer than LEAST seeds decide nothing. A few claims are about other numbers
than accuracies; their values come from a record of their own.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.records import Records
from experiments.studies import LEAST

ROBUST, CLEAN = "robust_accuracy", "clean_accuracy"
CIFAR = "cifar10-width16"

# setup -> p -> the epochs in which all data are as many examples as pruning p after epoch 3
EQUAL = {"mnist-robust": {0.2: 7, 0.4: 6, 0.6: 5, 0.8: 4},
         "digits": {0.2: 25, 0.4: 19, 0.6: 14, 0.8: 8},
         CIFAR: {0.4: 10, 0.6: 8}}


class Claim(NamedTuple):
    """`terms` summed is above `bound`; or below it, where `below` is set."""

    source: str
    says: str
    experiment: str
    setup: str
    terms: tuple[tuple[float, str, str], ...] = ()  # weight, arm, accuracy
    bound: float = 0.0
    below: bool = False
    beside: str = ""  # a setup whose sum of the same terms is subtracted
    values: Callable[[Records], np.ndarray] | None = None  # instead of terms


def less(one: str, other: str, accuracy: str = ROBUST) -> tuple:
    """The terms of one arm less another."""
    return (1, one, accuracy), (-1, other, accuracy)


def relative_to_mnist(name: str) -> Callable[[Records], np.ndarray]:
    """The relative change of geometry.py's statistic by pruning MNIST, for each pruned set."""
    def values(records):
        rows = records["geometry"]["rows"] if "geometry" in records else []
        whole, pruned = ([row[name] for row in rows if row["name"] == wanted]
                         for wanted in ("mnist", "pruned mnist"))
        return np.array([value / whole[0] - 1 for value in pruned])
    return values


def _slower(records: Records) -> np.ndarray:
    """How far training is from a time in proportion to the examples, for each p."""
    rows = records["cpu-scale"]["rows"] if "cpu-scale" in records else []
    return np.array([row["deviation"] for row in rows if row["p"]])


def _papers() -> list[Claim]:
    """Those of Kaufmann et al. 2022, by section."""
    made = [
        Claim("4.2, figure 1", f"random, p = {p}: pruning after epoch 6 gains less than 2 points "
              "over epoch 3", "figure1", "mnist-robust",
              less(f"random-{p}-after-6", f"random-{p}-after-3"), 0.02, True)
        for p in (0.1, 0.3)]
    made.append(Claim("4.3, figure 2", "random at p = 0.8 costs robust accuracy", "figure2",
                      "mnist-robust", less("random-0.8", "full"), 0, True))
    for setup in ("mnist-paper", "mnist-robust"):
        made += [
            Claim("4.4", "low+high at p = 0.6 is more robust than all data", "table1", setup,
                  less("low+high-0.6", "full")),
            Claim("4.4, table 1", "low+high at p = 0.6 is more robust than random", "table1",
                  setup, less("low+high-0.6", "random-0.6")),
            Claim("4.4, figure 3", "low+high at p = 0.6 costs less than a point of clean accuracy",
                  "table1", setup, less("low+high-0.6", "full", CLEAN), -0.01)]
    return made + [
        Claim("4.5", "random at p = 0.4 costs less than 8 points of robust accuracy", "figure4",
              CIFAR, less("random-0.4", "full"), -0.08),
        Claim("4.5", "dropping low losses costs robust accuracy, against random at p = 0.4",
              "figure4", CIFAR, less("low-0.4", "random-0.4"), 0, True),
        Claim("4.5", "dropping low losses costs clean accuracy, against random at p = 0.4",
              "figure4", CIFAR, less("low-0.4", "random-0.4", CLEAN), 0, True),
        Claim("4.5", "dropping high losses costs more clean than robust accuracy, against random "
              "at p = 0.4", "figure4", CIFAR,
              (*less("high-0.4", "random-0.4", CLEAN), *less("random-0.4", "high-0.4")), 0,
              True),
        Claim("4.5", "high costs less than 2 points of robust accuracy, against random at p = 0.4",
              "figure4", CIFAR, less("high-0.4", "random-0.4"), -0.02),
        Claim("4.6, figure 5", "training time is within 5 % of proportional to the examples",
              "figure5", "MNIST", bound=0.05, below=True, values=_slower),
        *(Claim("5, 5.1", "dropping high losses is more robust than dropping low ones, p = 0.4",
                experiment, setup, less("high-0.4", "low-0.4"))
          for experiment, setup in (("figure3", "mnist-robust"), ("figure4", CIFAR))),
        Claim("A, figure 7", "low+high at p = 0.6 is less robust than random", "table1", CIFAR,
              less("low+high-0.6", "random-0.6"), 0, True),
        Claim("A.1", "low+high gains more over random than on CIFAR-10 (width 16), p = 0.6",
              "table1", "mnist-robust", less("low+high-0.6", "random-0.6"), beside=CIFAR),
        Claim("A.1", "low+high at p = 0.6 is more robust than random", "table2", "fashion-mnist",
              less("low+high-0.6", "random-0.6")),
        Claim("A.1, table 2", "low+high pruning at p = 0.4 lowers the density rho", "table2",
              "MNIST", below=True, values=relative_to_mnist("rho")),
        Claim("A.1, table 2", "low+high pruning at p = 0.4 raises the separation delta",
              "table2", "MNIST", values=relative_to_mnist("delta"))]


def _puma() -> list[Claim]:
    """Those of the abstract of Maroto & Frossard 2024."""
    says, made = "PUMA, abstract", []
    for setup in ("mnist-pgd5", CIFAR):
        made += [
            Claim(says, "dropping high margins costs robust accuracy, p = 0.3", "puma", setup,
                  less("margin-0.3", "full"), 0, True),
            Claim(says, "dropping high margins costs clean accuracy, p = 0.3", "puma", setup,
                  less("margin-0.3", "full", CLEAN), 0, True),
            Claim(says, "dropping high margins is more robust than random, p = 0.3", "puma",
                  setup, less("margin-0.3", "random-0.3-from-start")),
            Claim(says, "PUMA at p = 0.3 is within 2 points of the robust accuracy of all data",
                  "puma", setup, less("puma-0.3", "full"), -0.02),
            Claim(says, "PUMA has a higher clean accuracy than all data, p = 0.3", "puma", setup,
                  less("puma-0.3", "full", CLEAN))]
    return made


AS_RUN, COMPLETED = "cifar10-authors", "cifar10-completed"


def schedules(records: Records) -> list[dict]:
    """The runs as the authors ran them, and those whose schedule completes, under other names."""
    as_run, completed = (records.study("authors", setup)["rows"] for setup in (AS_RUN, COMPLETED))
    return [*as_run, *({**row, "arm": f"{row['arm']}, completed"} for row in completed)]


def _completing() -> list[Claim]:
    """What Table 1's runs on CIFAR-10 lost because their schedule stops on the way."""
    def gained(terms):
        return lambda records: by_seed(schedules(records), terms)

    return [
        *(Claim("code", "completing the schedule gives back more than half of what the authors' "
                f"recipe loses to all data, random at p = 0.6: {name}", "authors", AS_RUN,
                values=gained(((1, "random-0.6, completed", accuracy),
                               (-0.5, "random-0.6", accuracy), (-0.5, "full", accuracy))))
          for name, accuracy in (("clean", CLEAN), ("apgd-ce", ROBUST))),
        *(Claim("code, table 1", f"extremes at p = {p} {worse} than random{ending}", "authors",
                AS_RUN, below=True,
                values=gained(less(f"extremes-{p}{arm}", f"random-{p}{arm}", accuracy)))
          for ending, arm in (("", ""), (", with the schedule completed", ", completed"))
          for p in (0.2, 0.6)
          for worse, accuracy in (("is less accurate", CLEAN), ("is less robust", ROBUST))),
        *(Claim("code, 4.4", "extremes at p = 0.6 is within 2 points of all data under "
                "apgd-ce", "authors", setup, less("extremes-0.6", "full"), -0.02)
          for setup in ("mnist-authors", "mnist-robust-apgd"))]


def _ours() -> list[Claim]:
    """What a user asks: does pruning beat fewer epochs, and which scores are worth their time?"""
    mnist = "mnist-robust"
    return [
        *(Claim("ours", f"{how} at p = {p} is more robust than all data for as many examples",
                "frontier", setup, less(f"{how}-{p}", f"full-{EQUAL[setup][p]}-epochs"))
          for setup, p, hows in (
              *((setup, p, ("random", "low", "low+high"))
                for setup in ("digits", mnist) for p in (0.4, 0.6)),
              (CIFAR, 0.4, ("random", "high")), (CIFAR, 0.6, ("random", "low+high")))
          for how in hows),
        *(Claim("ours", f"high at p = 0.4 {better} than all data for 8 epochs, which are fewer "
                "examples", "frontier", CIFAR, less("high-0.4", "full-8-epochs", accuracy))
          for better, accuracy in (("is more robust", ROBUST),
                                   ("has a higher clean accuracy", CLEAN))),
        Claim("ours", "6 epochs, random at p = 0.4, is more robust than 5 epochs on all data",
              "frontier", mnist, less("random-0.4-6-epochs", "full-5-epochs")),
        *(Claim("ours", f"{how} at p = 0.4 is more robust by running-loss than by loss",
                "frontier", mnist, less(f"{how}-0.4-running", f"{how}-0.4"))
          for how in ("high", "low+high")),
        Claim("ours", "low+high at p = 0.4 is more robust with --class-balanced", "frontier",
              mnist, less("low+high-0.4-balanced", "low+high-0.4"))]


def _wrong_labels() -> list[Claim]:
    """Clean first, at the true share of wrong labels, or with none. Fixed before measuring."""
    equal = "all data for as many examples"
    return [
        *(Claim("ours", f"40 % of the labels wrong: clean first {says} {equal}", setup, setup,
                less("clean-first", all_data, accuracy), bound)
          for setup, all_data in (("noisy-mnist-0.4", "fewer-7"), ("noisy-fashion-0.4", "fewer-7"),
                                  ("noisy-cifar10-worst", "fewer-12"))
          for says, accuracy, bound in (
              ("has a clean accuracy 5 points or more above", CLEAN, 0.05),
              ("is within 2 points of the robust accuracy of", ROBUST, -0.02))),
        *(Claim("ours", f"no label made wrong: clean first at p = 0.4 {says} {equal}", setup,
                setup, less("clean-first", all_data, accuracy), 0, True)
          for setup, all_data in (("noisy-mnist-0", "fewer-7"), ("noisy-fashion-0", "fewer-7"),
                                  ("noisy-cifar10-0", "fewer-12"))
          for says, accuracy in (("is less accurate than", CLEAN),
                                 ("is less robust than", ROBUST)))]


CLAIMS = [*_papers(), *_completing(), *_puma(), *_ours(), *_wrong_labels()]


def by_seed(rows: list[dict], terms: tuple) -> np.ndarray:
    """The sum of the terms [seeds], of the seeds that have all arms."""
    value = {(row["arm"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return np.array([
        sum(weight * value[arm, seed][accuracy] for weight, arm, accuracy in terms)
        for seed in seeds if all((arm, seed) in value for _, arm, _ in terms)])


def measured(claim: Claim, records: Records) -> np.ndarray:
    """The values [n] that decide about this claim."""
    if claim.values:
        return claim.values(records)
    mine = by_seed(records.study(claim.experiment, claim.setup)["rows"], claim.terms)
    if not claim.beside:
        return mine
    other = by_seed(records.study(claim.experiment, claim.beside)["rows"], claim.terms)
    n = min(len(mine), len(other))  # of other data, so that seeds have nothing in common
    return mine[:n] - other[:n]


def student(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values [n], n > 1."""
    spread = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return float(values.mean() - spread), float(values.mean() + spread)


def with_interval(values: np.ndarray) -> str:
    """The mean of values [n] and its interval; a dash where they are too few for a verdict."""
    if len(values) < LEAST:
        return "—"
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(values.mean(), *student(values))


def verdict(values: np.ndarray, bound: float, below: bool) -> str:
    """Whether the mean of values [n] is above the bound (or below it)."""
    if len(values) < LEAST:
        return "not yet measured"
    low, high = student(values)
    if low <= bound <= high:
        return "cannot be told: the interval has both sides"
    return "holds" if (high < bound) == below else "does not hold"
