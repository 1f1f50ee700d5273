"""The papers' experiments: which runs each of them needs, and the records of these runs.

A setup is what all its runs share: data set, network, recipe. An arm is what differs between them.
A run is a setup, an arm and a seed; experiments share runs. Its record is
results/SETUP/ARM-SEED.json.
"""
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advprune import config, own_code
from advprune.errors import UserError
from advprune.run import read_record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MARGINS, HALF = "{margins}", "{half}"  # of an arm: filled in for each run


@dataclass(frozen=True)
class Setup:
    """Settings that all runs share, and how they are attacked."""

    settings: dict[str, Any]
    attack: str = "autoattack"
    also: str = ""  # another attack, on its own
    also_n: int = 0  # its number of test images (as many as the first one)

    @property
    def dataset(self) -> str:
        return self.settings["dataset"]


@dataclass(frozen=True)
class Arm:
    """Settings that differ from the setup's.

    MARGINS stands for the scores under this seed's run on all data, HALF for half of the budget.
    """

    settings: dict[str, Any]


class Run(NamedTuple):
    setup: str
    arm: str
    seed: int
    n: int  # test images to attack
    file: str | None = None  # of a study that a user wrote

    @property
    def name(self) -> str:
        return f"{self.setup}/{self.arm}-{self.seed}"

    @property
    def how(self) -> Setup:
        return setup_of(self)

    @property
    def settings(self) -> dict[str, Any]:
        arms = read(self.file).arms if self.file else ARMS
        return {**self.how.settings, **arms[self.arm].settings}

    def own(self) -> dict[str, tuple[str, str]]:
        """FILE.py:NAME and source of the user's own score and rule, by flag, as they are now."""
        settings = resolved(self.settings, self.file)
        return {flag: (name, own_code.source(name, flag)) for flag in ("score", "prune")
                if own_code.is_file(name := settings.get(flag, ""))}

    @property
    def flags(self) -> str:
        """The settings as flags of train.py, with MARGINS and HALF as they stand."""
        return " ".join(flags(self.settings))


class Part(NamedTuple):
    """Some arms of a setup, for how many seeds, attacked on the first n test images."""

    setup: str
    arms: tuple[str, ...]
    seeds: int
    n: int
    first: int = 0  # the first seed
    file: str | None = None  # of a study that a user wrote

    @property
    def dataset(self) -> str:
        return setup_of(self).dataset

    def runs(self, seeds: Iterable[int] | None = None) -> list[Run]:
        """Its runs, with these seeds or its own."""
        return [Run(self.setup, arm, seed, self.n, self.file)
                for seed in (range(self.first, self.first + self.seeds) if seeds is None
                             else seeds) for arm in self.arms]


def setup_of(of: Run | Part) -> Setup:
    """The Setup of a run or a part: its study's, or the one of this name."""
    return read(of.file).setup if of.file else SETUPS[of.setup]


def flags(settings: dict[str, Any]) -> list[str]:
    """The words of train.py's command line for these settings."""
    words = []
    for name, value in settings.items():
        if value is not False:
            words.append(f"--{name.replace('_', '-')}")
        if not isinstance(value, bool):
            words.append(str(value))
    return words


# --- a study in a file

def resolved(settings: dict[str, Any], file: str | None) -> dict[str, Any]:
    """The settings, in which FILE.py:NAME and a file of labels lie beside the study's own file."""
    if not file:
        return settings
    return {name: str(Path(file).parent / value)
            if isinstance(value, str) and (own_code.is_file(value) or name == "labels")
            and not value.startswith("symmetric-") else value
            for name, value in settings.items()}


class Study(NamedTuple):
    setup: Setup
    arms: dict[str, Arm]
    part: Part
    compare: dict[str, str]  # arm -> the arm that it is compared with


KEYS = {"setup": dict, "arms": dict, "attack": str, "n": int, "seeds": int, "first_seed": int,
        "also": str, "also_n": int, "compare": dict}


@cache
def read(path: str) -> Study:
    """The study of a TOML file, as experiments/study.py explains it. Raises UserError for others.
    """
    try:
        content = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise UserError(f"{path} is no TOML: {error}") from None
    for name, value in content.items():
        if name not in KEYS:
            raise UserError(f"{path}: there is no {name!r}; a study has {', '.join(KEYS)}")
        if not isinstance(value, KEYS[name]) or (KEYS[name] is int and value < 0):
            raise UserError(f"{path}: {name} must be of type {KEYS[name].__name__}, not {value!r}")
    if absent := [name for name in ("setup", "arms", "n", "seeds") if not content.get(name)]:
        raise UserError(f"{path} has no {absent[0]}")
    setup = Setup(content["setup"], content.get("attack", "pgd-20"), content.get("also", ""),
                  content.get("also_n", 0))
    arms, name = {}, Path(path).stem
    for arm, settings in content["arms"].items():
        if not isinstance(settings, dict) or not re.fullmatch(r"[\w.+-]+", arm):
            raise UserError(f"{path}: an arm is a table of settings, with a name of letters, "
                            f"digits and .+-_, not {arm!r}")
        arms[arm] = Arm(settings)
        for setting in {**setup.settings, **settings}:
            if setting not in config.Settings.__annotations__ or setting == "seed":
                raise UserError(f"{path}: arm {arm}: {setting!r} is no setting of a study; the "
                                "command line has --data-dir and --jobs")
        try:
            config.parse(flags(resolved({**setup.settings, **settings}, path)))
        except UserError as error:
            raise UserError(f"{path}: arm {arm}: {error}") from None
    compare = content.get("compare", {})
    if unknown := [arm for pair in compare.items() for arm in pair if arm not in arms]:
        raise UserError(f"{path}: compare names {unknown[0]!r}, which is none of its arms")
    part = Part(name, tuple(arms), content["seeds"], content["n"], content.get("first_seed", 0),
                str(Path(path).resolve()))
    return Study(setup, arms, part, compare)


SETUPS = {
    "digits": Setup(dict(dataset="digits")),
    "mnist-paper": Setup(dict(dataset="mnist")),
    "mnist-robust": Setup(dict(dataset="mnist", recipe="robust")),
    "mnist-collapse": Setup(dict(dataset="mnist"), "pgd"),
    # Five steps of PGD: PUMA needs a margin model that does not collapse.
    "mnist-pgd5": Setup(dict(dataset="mnist", attack="pgd", pgd_steps=5, alpha=0.1, epochs=5)),
    "fashion-mnist": Setup(dict(dataset="fashion-mnist", recipe="robust")),
    "cifar10-width4": Setup(dict(dataset="cifar10", limit=10000, width=4, epochs=8)),
    "cifar10-width8": Setup(dict(dataset="cifar10", limit=10000, width=8, epochs=5,
                                 attack="n-fgsm"), "pgd"),
    "cifar10-width16": Setup(dict(dataset="cifar10", width=16, precision="bf16")),
    "mnist-authors": Setup(dict(dataset="mnist", recipe="authors"), "apgd-ce", "pgd-20", 10000),
    "mnist-robust-apgd": Setup(dict(dataset="mnist", recipe="robust"), "apgd-ce", "pgd-20",
                               10000),
    # As the authors ran it, and the same with a schedule that completes.
    "cifar10-authors": Setup(dict(dataset="cifar10", width=16, precision="bf16",
                                  recipe="authors"), "apgd-ce", "pgd-20", 10000),
    "cifar10-completed": Setup(dict(dataset="cifar10", width=16, precision="bf16",
                                    recipe="authors", schedule="cyclic"),
                               "apgd-ce", "pgd-20", 10000),
    "cifar10-epoch": Setup(dict(dataset="cifar10", limit=2000, epochs=1), "fgsm"),
    "cifar10": Setup(dict(dataset="cifar10", precision="bf16"), also="pgd"),
}
LEAST = 3  # seeds, for a verdict or a dot of a picture
FRACTIONS, PRUNING = (0.2, 0.4, 0.6, 0.8), ("random", "high", "low", "low+high")


def _named(pattern: str, values: dict[str, Iterable], **settings: Any) -> dict[str, Arm]:
    """name -> Arm of these settings and of each combination of the values."""
    made: list[dict] = [{}]
    for name, choices in values.items():
        made = [{**one, name: choice} for one in made for choice in choices]
    return {pattern.format(**one): Arm({**one, **settings}) for one in made}


def _pruned(prune: str, p: float, **settings: Any) -> Arm:
    return Arm(dict(prune=prune, p=p, **settings))


ARMS = {
    "full": Arm({}), "undefended": Arm(dict(attack="none")),
    **_named("{prune}-{p}", dict(prune=PRUNING, p=FRACTIONS), epoch=3),
    **_named("{prune}-{p}", dict(prune=("middle",), p=(0.4, 0.6)), epoch=3),
    **_named("{prune}-{p}", dict(prune=("extremes",), p=(0.2, 0.6)), epoch=3),
    **_named("{prune}-{p}-after-{epoch}", dict(prune=("random",), p=(0.1, 0.3),
                                               epoch=(0, 1, 3, 6))),
    **_named("full-{epochs}-epochs", dict(epochs=(4, 5, 6, 7, 8, 10, 13, 14, 19, 25))),
    "random-0.4-6-epochs": _pruned("random", 0.4, epoch=3, epochs=6),
    **_named("{prune}-{p}-running", dict(prune=("high", "low+high"), p=(0.4, 0.6)), epoch=3,
             score="running-loss"),
    **_named("{prune}-{p}-balanced", dict(prune=("low+high",), p=(0.4, 0.6)), epoch=3,
             class_balanced=True),
    **{f"margin-{p}": _pruned("high", p, scores=MARGINS) for p in (0.3, 0.4, 0.6)},
    **{f"puma-{p}": _pruned("puma", p, scores=MARGINS) for p in (0.3, 0.4, 0.6)},
    "keep-easy-0.3": _pruned("low", 0.3, scores=MARGINS),
    "puma-floor-0.3": _pruned("puma", 0.3, scores=MARGINS, eps_floor=HALF),
    "random-0.3-from-start": _pruned("random", 0.3, epoch=0),
    "robust": Arm(dict(recipe="robust")), "rollback": Arm(dict(on_collapse="rollback")),
    "small-step": Arm(dict(alpha=0.2)), "bf16": Arm(dict(precision="bf16")),
}
TABLE_1 = ("full", "random-0.2", "extremes-0.2", "low+high-0.2", "random-0.6", "extremes-0.6",
           "low+high-0.6")
FIGURE_4 = (*TABLE_1, "random-0.4", "high-0.4", "low-0.4")
GRID = ("full", *(f"{how}-{p}" for p in FRACTIONS for how in PRUNING))
PUMA = ("full", "random-0.3-from-start", "margin-0.3", "puma-0.3", "puma-floor-0.3")
FRONTIER = (*GRID, *(f"full-{e}-epochs" for e in (4, 5, 6, 7)),
            *(f"{arm}-{p}{suffix}" for p in (0.4, 0.6) for arm, suffix in (
                ("middle", ""), ("high", "-running"), ("low+high", "-running"),
                ("low+high", "-balanced"), ("margin", ""), ("puma", ""))),
            "random-0.4-6-epochs")
EXPERIMENTS = {  # in the order of `all`
    "table1": (Part("mnist-robust", TABLE_1, 10, 500),
               # A smaller step collapses less: does the paper's mean come from one?
               Part("mnist-paper", (*TABLE_1, "small-step"), 10, 500),
               Part("cifar10-width16", TABLE_1, 3, 300)),
    "figure4": (Part("cifar10-width16", FIGURE_4, 3, 300),),
    "figure2": (Part("mnist-robust", ("full", *(f"random-{p}" for p in FRACTIONS)), 3, 200),),
    "figure7": (Part("mnist-robust", ("full", *(f"{how}-{p}" for p in FRACTIONS
                                                for how in ("random", "low+high"))), 3, 200),),
    "figure3": (Part("mnist-robust", GRID, 3, 200),),
    "frontier": (Part("mnist-robust", FRONTIER, 5, 200),
                 Part("digits", (*GRID, *(f"full-{e}-epochs" for e in (8, 14, 19, 25))), 5, 200),
                 Part("cifar10-width16", (*FIGURE_4, "full-8-epochs", "full-10-epochs"), 3, 300)),
    "figure1": (Part("mnist-robust", ("full", *(f"random-{p}-after-{e}" for p in (0.1, 0.3)
                                                for e in (0, 1, 3, 6))), 3, 200),),
    "puma": (Part("mnist-pgd5", (*PUMA, "keep-easy-0.3"), 3, 500),
             Part("cifar10-width4", (*PUMA, "keep-easy-0.3"), 3, 500),
             Part("cifar10-width16", PUMA, 3, 300)),
    "table2": (Part("fashion-mnist", ("full", "random-0.6", "low+high-0.6"), 3, 300),),
    # Does Table 1 show the price of less data, or of a schedule that stops on the way?
    "authors": (
        Part("cifar10-authors", ("random-0.6", "full", "extremes-0.6", "random-0.2",
                                 "extremes-0.2"), 3, 1000),
        Part("cifar10-completed", ("random-0.6", "extremes-0.6", "random-0.2", "extremes-0.2",
                                   "low+high-0.6", "full-8-epochs", "full-13-epochs"), 3, 1000),
        # Seeds that no choice was made by.
        Part("mnist-authors", TABLE_1, 10, 1000, 10),
        Part("mnist-robust-apgd", TABLE_1, 10, 1000, 10)),
    "digits": (Part("digits", (
        "full", "undefended", "full-19-epochs", *(f"{how}-0.4" for how in PRUNING),
        "full-8-epochs", "random-0.8"), 5, 200),),
    "collapse": (Part("mnist-collapse", ("full", "robust", "rollback", "small-step"), 10, 1000),),
    "precision": (Part("cifar10-width8", ("full", "bf16"), 3, 200),),
    # README's line, beside random and all data: the network at its full width.
    "headline": (Part("cifar10-epoch", ("full", "bf16"), 1, 300),
                 Part("cifar10", ("high-0.4", "random-0.4", "full"), 1, 300)),
}


for _path in sorted(Path(__file__).parent.glob("*.toml")):  # experiments of this repository
    EXPERIMENTS[_path.stem] = (read(str(_path)).part,)


def record(results: Path, run: Run) -> dict | None:
    """This run's record, cut to its first n test images; None if it has not so many.

    Raises UserError for a record that is damaged, or of a run with other flags.
    """
    path = results / f"{run.name}.json"
    if not path.exists():
        return None
    found = read_record(path, "n", "flags", "robust_accuracy", "clean_accuracy")
    if found["flags"] != run.flags:
        raise UserError(f"{path} is of a run with other flags ({found['flags']}); move it")
    for flag, (_, code) in run.own().items():
        if found.get("own", {}).get(flag) != own_code.digest(code):
            raise UserError(f"{path} is of a run with another --{flag}: its file has changed; "
                            "move the record and the run's folder away, or rename the study")
    if found["n"] < run.n or (found["n"] > run.n and not found.get("robust")):
        return None
    if found["n"] > run.n:
        found |= {"n": run.n, "robust": found["robust"][:run.n],
                  "robust_accuracy": found["robust"][:run.n].count("1") / run.n}
    return found


def rows(results: Path, part: Part) -> list[dict]:
    """The records of this part that are there, by seed and arm."""
    return [row for run in part.runs() if (row := record(results, run))]


def summary(rows: list[dict]) -> dict[str, dict]:
    """For each arm: how many seeds, and mean and standard deviation of both accuracies."""
    table: dict[str, dict] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        table[arm] = {"seeds": len(mine)}
        for name in ("clean_accuracy", "robust_accuracy"):
            values = [row[name] for row in mine]
            table[arm][name] = float(np.mean(values))
            table[arm][f"{name}_std"] = float(np.std(values, ddof=1)) if len(mine) > 1 else None
    return table
