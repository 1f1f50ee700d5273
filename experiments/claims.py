"""What the papers claim and a user asks, and whether our runs agree.

A claim is about a sum of accuracies of arms with signs, such as one arm less another. It is
computed for each seed, so that what a seed does to all arms cancels, and Student's t decides.
Fewer than LEAST seeds decide nothing. A few claims are about other numbers than accuracies; their
values come from a record of their own.
"""
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.records import Records
from experiments.studies import EXPERIMENTS, LEAST, read

ROBUST, CLEAN = "robust_accuracy", "clean_accuracy"
MNIST, CIFAR = "mnist-robust", "cifar10-width16"
AS_RUN, COMPLETED = "cifar10-authors", "cifar10-completed"
CIFAR_EPOCHS = ((0.2, 13), (0.6, 8))  # p, and the epochs on all data that see as many examples

# setup -> p -> the epochs in which all data are as many examples as pruning p after epoch 3
EQUAL = {MNIST: {0.2: 7, 0.4: 6, 0.6: 5, 0.8: 4},
         "digits": {0.2: 25, 0.4: 19, 0.6: 14, 0.8: 8},
         CIFAR: {0.4: 10, 0.6: 8}}


class Claim(NamedTuple):
    """`terms` summed is above `bound`; or below it, if `below` is set."""

    source: str  # a section, table or figure of Kaufmann et al. 2022, or in words
    says: str
    experiment: str
    setup: str
    terms: tuple[tuple[float, str, str], ...] = ()  # weight, arm, accuracy
    bound: float = 0.0
    below: bool = False
    values: Callable[[Records], np.ndarray] | None = None  # instead of terms


# --- values and verdicts

def less(one: str, other: str, accuracy: str = ROBUST) -> tuple:
    """The terms of one arm less another."""
    return (1, one, accuracy), (-1, other, accuracy)


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
    return by_seed(records.study(claim.experiment, claim.setup)["rows"], claim.terms)


def student(values: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of the mean of values [n], n > 1."""
    spread = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return float(values.mean() - spread), float(values.mean() + spread)


def with_interval(values: np.ndarray) -> str:
    """The mean of values [n] and its interval; a dash if they are too few for a verdict."""
    if len(values) < LEAST:
        return "—"
    return "{:+.3f} ({:+.3f} to {:+.3f})".format(values.mean(), *student(values))


def p_value(values: np.ndarray, bound: float = 0.0) -> float:
    """Of Student's t-test that the mean of values [n] is the bound; NaN if they are too few."""
    return float(stats.ttest_1samp(values, bound).pvalue) if len(values) >= LEAST else np.nan


def holm(p: Sequence[float]) -> np.ndarray:
    """Which tests [n] of these p values are clear at 5 % for all of them together (Holm 1979).

    NaN is a test that was not made. It is not clear, and makes the others no harder.
    """
    order = np.argsort(p)  # NaN is last
    left = np.isfinite(p).sum() - np.arange(len(p))
    clear = np.empty(len(p), bool)
    clear[order] = np.logical_and.accumulate(np.take(p, order) * left < 0.05)
    return clear


def verdict(claim: Claim, values: np.ndarray, clear: bool) -> str:
    """What these values [n] say of the claim, whose test is clear or not."""
    if len(values) < LEAST:
        return "not yet measured"
    if not clear:
        return "no clear difference"
    return "holds" if (values.mean() < claim.bound) == claim.below else "does not hold"


def at_equal_examples(rows: list[dict], setup: str, accuracy: str = ROBUST
                      ) -> list[tuple[str, str, np.ndarray]]:
    """(pruned arm, fewer epochs, one less the other by seed [n]), of the arms with LEAST seeds."""
    found = []
    for p, epochs in EQUAL[setup].items():
        for arm in dict.fromkeys(row["arm"] for row in rows):
            # Those by margin prune at the start, so they have seen fewer examples.
            if re.fullmatch(rf"(?!margin|puma)[a-z+]+-{p}(-running|-balanced)?", arm):
                fewer = f"full-{epochs}-epochs"
                values = by_seed(rows, less(arm, fewer, accuracy))
                found += [(arm, fewer, values)] * (len(values) >= LEAST)
    return found


# --- values that are no sums over the arms of one setup

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


def schedules(records: Records) -> list[dict]:
    """The runs as the authors ran them, and those whose schedule completes, under other names."""
    as_run, completed = (records.study("authors", setup)["rows"] for setup in (AS_RUN, COMPLETED))
    return [*as_run, *({**row, "arm": f"{row['arm']}, completed"} for row in completed)]


def _of_schedules(terms: tuple) -> Callable[[Records], np.ndarray]:
    return lambda records: by_seed(schedules(records), terms)


# --- the claims

def _completing(name: str, accuracy: str) -> Claim:
    """On CIFAR-10, where the schedule of Table 1's pruned runs stops on the way."""
    return Claim("their code", f"Completing the schedule gives back more than half of the {name} "
                 "accuracy that `random` at p = 0.6 loses against all data", "authors", AS_RUN,
                 values=_of_schedules(((1, "random-0.6, completed", accuracy),
                                       (-0.5, "random-0.6", accuracy), (-0.5, "full", accuracy))))


def _equal(how: str, p: float, setup: str) -> Claim:
    """A user asks: does pruning beat fewer epochs?"""
    return Claim("ours", f"`{how}` at p = {p} is more robust than fewer epochs at equal examples",
                 "frontier", setup, less(f"{how}-{p}", f"full-{EQUAL[setup][p]}-epochs"))


def fewer_epochs(setup: str) -> str:
    """The arm of a study of wrong labels that `clean-first` is compared with."""
    (part,) = EXPERIMENTS[setup]
    return read(part.file).compare["clean-first"]


def _clean_first(setup: str) -> tuple[Claim, Claim]:
    """Does it pay to drop wrong labels, as a first training without an attack finds them?"""
    wrong, fewer = "40 % of the labels wrong: `clean-first`", fewer_epochs(setup)
    return (Claim("ours", f"{wrong} has 5 points more clean accuracy than fewer epochs at equal "
                  "examples", setup, setup, less("clean-first", fewer, CLEAN), 0.05),
            Claim("ours", f"{wrong} loses less than 2 points of robust accuracy against fewer "
                  "epochs at equal examples", setup, setup, less("clean-first", fewer), -0.02))


NOISY = ("noisy-mnist-0.4", "noisy-cifar10-worst")  # those that decide
SHARES = {0.0: "noisy-mnist-0", 0.2: "noisy-mnist-0.2", 0.4: "noisy-mnist-0.4"}


def wrong_shares(records: Records) -> list[dict]:
    """The runs on MNIST with these shares of wrong labels, of three ways to train."""
    found = []
    for share, setup in SHARES.items():
        ways = {fewer_epochs(setup): "all data", "clean-first": "clean first",
                "oracle": "oracle"}
        found += [{**row, "arm": f"{ways[row['arm']]}, {share}"}
                  for row in records.study(setup, setup)["rows"] if row["arm"] in ways]
    return found


def _over_random(source: str, experiment: str, setup: str, below: bool = False) -> Claim:
    return Claim(source, f"`low+high` at p = 0.6 is {'less' if below else 'more'} robust than "
                 "`random`", experiment, setup, less("low+high-0.6", "random-0.6"), below=below)


def _over_all(setup: str) -> Claim:
    return Claim("4.4", "`low+high` at p = 0.6 is more robust than all data", "table1", setup,
                 less("low+high-0.6", "full"))


def _margin_over_random(setup: str) -> Claim:
    return Claim("PUMA", "`high` by margin at p = 0.3 is more robust than `random`", "puma",
                 setup, less("margin-0.3", "random-0.3-from-start"))


def _puma_near_all(setup: str) -> Claim:
    return Claim("PUMA", "`puma` at p = 0.3 loses less than 2 points of robust accuracy "
                 "against all data", "puma", setup, less("puma-0.3", "full"), -0.02)


# What a reader wants to know first. Chosen by the question, whatever the answer.
DECISIVE = {
    "Should I prune at all?": [
        _over_all(MNIST), _equal("random", 0.4, "digits"), _equal("random", 0.4, MNIST),
        _equal("random", 0.6, CIFAR)],
    "Which strategy?": [
        _equal("high", 0.4, "digits"),
        Claim("4.5", "`high` at p = 0.4 loses more clean than robust accuracy against `random`",
              "figure4", CIFAR, (*less("high-0.4", "random-0.4", CLEAN),
                                 *less("random-0.4", "high-0.4")), below=True),
        Claim("ours", "`low` at p = 0.6 is more robust than fewer epochs at equal examples",
              "low-mnist", "low-mnist", less("low", "fewer-5"))],
    "Does `random` do as well?": [
        _over_random("4.4, table 1", "table1", MNIST),
        _over_random("A, figure 7", "table1", CIFAR, below=True)],
    "Does it pay if labels are wrong?": [
        claim for setup in NOISY for claim in _clean_first(setup)],
    "Does the schedule matter?": [_completing("robust", ROBUST)],
    "Does PUMA help?": [_margin_over_random("mnist-pgd5"), _puma_near_all("mnist-pgd5")]}


def _papers() -> list[Claim]:
    """Of Kaufmann et al. 2022, by section."""
    return [
        *(Claim("4.2, figure 1", f"`random` at p = {p} gains less than 2 points of robust "
                "accuracy if it prunes after epoch 6 and not 3", "figure1", MNIST,
                less(f"random-{p}-after-6", f"random-{p}-after-3"), 0.02, True)
          for p in (0.1, 0.3)),
        Claim("4.3, figure 2", "`random` at p = 0.8 is less robust than all data", "figure2",
              MNIST, less("random-0.8", "full"), below=True),
        _over_all("mnist-paper"), _over_random("4.4, table 1", "table1", "mnist-paper"),
        *(Claim("4.4, figure 3", "`low+high` at p = 0.6 loses less than 1 point of clean "
                "accuracy against all data", "table1", setup, less("low+high-0.6", "full", CLEAN),
                -0.01)
          for setup in ("mnist-paper", MNIST)),
        Claim("4.5", "`random` at p = 0.4 loses less than 8 points of robust accuracy against all "
              "data", "figure4", CIFAR, less("random-0.4", "full"), -0.08),
        *(Claim("4.5", f"`low` at p = 0.4 {worse} than `random`", "figure4", CIFAR,
                less("low-0.4", "random-0.4", accuracy), below=True)
          for worse, accuracy in (("is less robust", ROBUST),
                                  ("has a lower clean accuracy", CLEAN))),
        Claim("4.5", "`high` at p = 0.4 loses less than 2 points of robust accuracy against "
              "`random`", "figure4", CIFAR, less("high-0.4", "random-0.4"), -0.02),
        Claim("4.6, figure 5", "The time of training is less than 5 % above proportional to the "
              "examples", "figure5", "MNIST", bound=0.05, below=True, values=_slower),
        *(Claim("5, 5.1", "`high` at p = 0.4 is more robust than `low`", experiment, setup,
                less("high-0.4", "low-0.4"))
          for experiment, setup in (("figure3", MNIST), ("figure4", CIFAR))),
        _over_random("A.1", "table2", "fashion-mnist"),
        Claim("A.1, table 2", "`low+high` at p = 0.4 lowers the density rho", "table2", "MNIST",
              below=True, values=relative_to_mnist("rho")),
        Claim("A.1, table 2", "`low+high` at p = 0.4 raises the separation delta", "table2",
              "MNIST", values=relative_to_mnist("delta"))]


def _code() -> list[Claim]:
    """Of the code of Kaufmann et al."""
    return [
        _completing("clean", CLEAN),
        *(Claim("their code, table 1", f"`extremes` at p = {p} {worse} than `random`{ending}",
                "authors", AS_RUN, below=True,
                values=_of_schedules(less(f"extremes-{p}{arm}", f"random-{p}{arm}", accuracy)))
          for ending, arm in (("", ""), (", with the schedule completed", ", completed"))
          for p in (0.2, 0.6)
          for worse, accuracy in (("has a lower clean accuracy", CLEAN),
                                  ("is less robust", ROBUST))),
        *(Claim("their code, 4.4", "`extremes` at p = 0.6 loses less than 2 points of robust "
                "accuracy against all data", "authors", setup, less("extremes-0.6", "full"), -0.02)
          for setup in ("mnist-authors", "mnist-robust-apgd"))]


def _puma() -> list[Claim]:
    """Of the abstract of Maroto & Frossard 2024."""
    return [
        *(Claim("PUMA", f"`high` by margin at p = 0.3 {worse} than all data", "puma", setup,
                less("margin-0.3", "full", accuracy), below=True)
          for setup in ("mnist-pgd5", CIFAR)
          for worse, accuracy in (("is less robust", ROBUST),
                                  ("has a lower clean accuracy", CLEAN))),
        _margin_over_random(CIFAR), _puma_near_all(CIFAR),
        *(Claim("PUMA", "`puma` at p = 0.3 has a higher clean accuracy than all data", "puma",
                setup, less("puma-0.3", "full", CLEAN)) for setup in ("mnist-pgd5", CIFAR))]


def _ours() -> list[Claim]:
    """Which ways to prune beat fewer epochs, and which scores are worth their time?"""
    return [
        *(_equal(how, p, setup) for setup, p, hows in (
            ("digits", 0.4, ("low", "low+high")), ("digits", 0.6, ("random", "low", "low+high")),
            (MNIST, 0.4, ("low", "low+high")), (MNIST, 0.6, ("random", "low", "low+high")),
            (CIFAR, 0.4, ("random", "high")), (CIFAR, 0.6, ("low+high",))) for how in hows),
        *(Claim("ours", f"`high` at p = 0.4 {better} than all data for 8 epochs, which are fewer "
                "examples", "frontier", CIFAR, less("high-0.4", "full-8-epochs", accuracy))
          for better, accuracy in (("is more robust", ROBUST),
                                   ("has a higher clean accuracy", CLEAN))),
        Claim("ours", "`random` at p = 0.4 for 6 epochs is more robust than 5 epochs on all data",
              "frontier", MNIST, less("random-0.4-6-epochs", "full-5-epochs")),
        *(Claim("ours", f"`{how}` at p = 0.4 is more robust by running loss than by loss",
                "frontier", MNIST, less(f"{how}-0.4-running", f"{how}-0.4"))
          for how in ("high", "low+high")),
        Claim("ours", "`low+high` at p = 0.4 is more robust with `--class-balanced`", "frontier",
              MNIST, less("low+high-0.4-balanced", "low+high-0.4"))]


def _wrong_labels() -> list[Claim]:
    """Clean first at the true share of wrong labels, or at p = 0.4 with none."""
    return [
        *_clean_first("noisy-fashion-0.4"),
        *(Claim("ours", f"No label made wrong: `clean-first` at p = 0.4 {worse} fewer epochs at "
                "equal examples", setup, setup,
                less("clean-first", fewer_epochs(setup), accuracy), below=True)
          for setup in ("noisy-mnist-0", "noisy-fashion-0", "noisy-cifar10-0")
          for worse, accuracy in (("has a lower clean accuracy than", CLEAN),
                                  ("is less robust than", ROBUST)))]


OTHERS = [*_papers(), *_code(), *_puma(), *_ours(), *_wrong_labels()]
