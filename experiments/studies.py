"""Studies: which runs an experiment needs, and the records of these runs.

A study is a file (experiments/study.py explains its form), and the papers' experiments are the
files of this folder. Its setup is what all its runs share: data set, network, recipe. An arm is
what differs between them. A run is a setup, an arm and a seed, and its record is
results/SETUP/ARM-SEED.json; SETUP is the name of the file. A part of a study is some of its arms,
over some seeds. An experiment is the parts of one name in all files; experiments share runs.
"""
import hashlib
import re
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from advprune import config, console, own_code
from advprune.errors import UserError
from advprune.run import read_record
from experiments import labels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MARGINS, HALF = "{margins}", "{half}"  # of an arm: filled in for each run
LEAST = 3  # seeds, for a verdict or a dot of a picture


class Setup(NamedTuple):
    """Settings that all runs share, and how they are attacked."""

    settings: dict[str, Any]
    attack: str
    also: str  # another attack, on its own
    also_n: int  # its number of test images (0: as many as the first one)

    @property
    def dataset(self) -> str:
        return self.settings["dataset"]


class Run(NamedTuple):
    file: str  # of the study
    arm: str
    seed: int
    n: int  # test images to attack

    @property
    def setup(self) -> str:
        return Path(self.file).stem

    @property
    def name(self) -> str:
        return f"{self.setup}/{self.arm}-{self.seed}"

    @property
    def how(self) -> Setup:
        return read(self.file).setup

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.how.settings, **read(self.file).arms[self.arm]}

    def own(self) -> dict[str, tuple[str, str]]:
        """FILE.py:NAME and source of the user's own network, score and rule, as they are now."""
        settings = resolved(self.settings, self.file)
        return {flag: (name, own_code.source(name, flag)) for flag in own_code.COPIES
                if own_code.is_file(name := settings.get(flag, ""))}

    def digests(self) -> dict[str, str]:
        """SHA-256 of the user's own code, and of the file of labels if it is there, by flag."""
        found = {flag: own_code.digest(code) for flag, (_, code) in self.own().items()}
        named = resolved(self.settings, self.file).get("labels")
        if named and labels.share_of(named) is None and Path(named).exists():
            found["labels"] = hashlib.sha256(Path(named).read_bytes()).hexdigest()
        return found

    @property
    def flags(self) -> str:
        """The settings as flags of train.py, with MARGINS and HALF as they stand."""
        return " ".join(flags(self.settings))


class Part(NamedTuple):
    """Some arms of a study, for how many seeds, attacked on the first n test images."""

    file: str  # of the study
    name: str
    arms: tuple[str, ...]
    seeds: int
    n: int
    first_seed: int

    @property
    def setup(self) -> str:
        return Path(self.file).stem

    @property
    def dataset(self) -> str:
        return read(self.file).setup.dataset

    def runs(self, seeds: Iterable[int] | None = None) -> list[Run]:
        """Its runs, with these seeds or its own."""
        own = range(self.first_seed, self.first_seed + self.seeds)
        return [Run(self.file, arm, seed, self.n)
                for seed in (own if seeds is None else seeds) for arm in self.arms]


class Study(NamedTuple):
    setup: Setup
    arms: dict[str, dict[str, Any]]  # the settings that differ from the setup's
    parts: tuple[Part, ...]
    compare: dict[str, str]  # arm -> the arm that it is compared with


def flags(settings: dict[str, Any]) -> list[str]:
    """The words of train.py's command line for these settings."""
    words = []
    for name, value in settings.items():
        if name == "score_augmented" and not value:  # the one flag with a no
            words.append("--no-score-augmented")
        elif value is not False:
            words += [console.flag(name)] if value is True else [console.flag(name), str(value)]
    return words


def resolved(settings: dict[str, Any], file: str) -> dict[str, Any]:
    """The settings, in which FILE.py:NAME and a file of labels lie beside the study's own file."""
    return {name: str(Path(file).parent / value)
            if isinstance(value, str) and (own_code.is_file(value) or (
                name == "labels" and labels.share_of(value) is None)) else value
            for name, value in settings.items()}


# --- a study's file

PART = {"seeds": int, "n": int, "first_seed": int}
PARSER = config.parser()  # one for all arms, because to make it takes a millisecond
SETTINGS = (config.Settings.__annotations__.keys() & vars(PARSER.parse_args([])).keys()) - {"seed"}
KEYS = {**PART, "setup": dict, "arms": dict, "attack": str, "also": str, "also_n": int,
        "compare": dict, "parts": dict}


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
    _check(path, content, KEYS)
    if absent := [name for name in ("setup", "arms") if not content.get(name)]:
        raise UserError(f"{path} has no {absent[0]}")
    setup = Setup(content["setup"], content.get("attack", "pgd-20"), content.get("also", ""),
                  content.get("also_n", 0))
    for arm, settings in content["arms"].items():
        _check_arm(path, arm, setup.settings, settings)
        if settings.get("scores") == MARGINS:
            _known(path, content["arms"], f"{MARGINS} of arm {arm}", ["full"])
    compare = content.get("compare", {})
    _known(path, content["arms"], "compare", [arm for pair in compare.items() for arm in pair])
    parts = content.get("parts", {Path(path).stem: {}})
    return Study(setup, content["arms"], tuple(
        _part(path, content, name, part) for name, part in parts.items()), compare)


def _check(where, table, keys):
    """Raise UserError unless this table has only these keys, with values of these types."""
    for name, value in table.items():
        if name not in keys:
            raise UserError(f"{where}: there is no {name!r}; it has {', '.join(keys)}")
        if type(value) is not keys[name] or (keys[name] is int and value < 0):
            raise UserError(f"{where}: {name} must be of type {keys[name].__name__}, not "
                            f"{value!r}")


def _known(path, arms, where, named):
    if unknown := [arm for arm in named if arm not in arms]:
        raise UserError(f"{path}: {where} names {unknown[0]!r}, which is none of its arms")


def _check_arm(path, arm, shared, settings):
    """Raise UserError unless train.py takes these settings of an arm."""
    if not isinstance(settings, dict) or not re.fullmatch(r"[\w.+-]+", arm):
        raise UserError(f"{path}: an arm is a table of settings, with a name of letters, digits "
                        f"and .+-_, not {arm!r}")
    settings = {**shared, **settings}
    for setting, value in settings.items():
        if setting not in SETTINGS:
            raise UserError(f"{path}: arm {arm}: {setting!r} is no setting of a study. They are "
                            "train.py's flags with _ for -; the command line has --data-dir and "
                            "--jobs")
        if isinstance(value, list):
            raise UserError(f"{path}: arm {arm}: {setting} has one value, not a list; several "
                            "numbers are \"0.5,0.5,0.5\"")
    if settings.get("eps_floor") == HALF:
        settings["eps_floor"] = 0.0
    try:
        made = config.settings(PARSER.parse_args(flags(resolved(settings, path))))
    except UserError as error:
        raise UserError(f"{path}: arm {arm}: {error}") from None
    if made.dataset == "folder" and labels.share_of(str(settings.get("labels"))) is not None:
        raise UserError(f"{path}: arm {arm}: labels = symmetric-SHARE is not for a folder of "
                        "images, which needs a CSV of path,class")
    if on := [name for name in settings if settings[name] is False and getattr(made, name)]:
        raise UserError(f"{path}: arm {arm}: {on[0]} = false: the recipe has it, and no flag of "
                        "train.py leaves it out")


def _part(path, content, name, own):
    """A part of a study; seeds and n of the file hold for all its parts."""
    where = path if "parts" not in content else f"{path}: part {name}"
    if not isinstance(own, dict):
        raise UserError(f"{where} must be a table, not {own!r}")
    _check(where, own, {**PART, "arms": list})
    values = {"first_seed": 0, "arms": list(content["arms"]),
              **{key: content[key] for key in PART if key in content}, **own}
    if absent := [key for key in ("seeds", "n") if not values.get(key)]:
        raise UserError(f"{where} has no {absent[0]}")
    _known(path, content["arms"], f"part {name}", values["arms"])
    return Part(path, name, tuple(values["arms"]), values["seeds"], values["n"],
                values["first_seed"])


def _ours():
    """The experiments of this folder: name -> its parts, those of small data sets first."""
    paths = sorted(map(str, Path(__file__).resolve().parent.glob("*.toml")))
    order = list(config.RECIPES)
    found: dict[str, tuple[Part, ...]] = {}
    for path in sorted(paths, key=lambda path: order.index(read(path).setup.dataset)):
        for part in read(path).parts:
            found[part.name] = (*found.get(part.name, ()), part)
    return found


EXPERIMENTS = _ours()


# --- the records

def record(results: Path, run: Run) -> dict | None:
    """This run's record, cut to its first n test images; None if it has not so many.

    Raises UserError for a record that is damaged, or not of this run.
    """
    path = results / f"{run.name}.json"
    if not path.exists():
        return None
    found = read_record(path, "n", "flags", "attack", "robust_accuracy", "clean_accuracy")
    setup = run.how
    if found["flags"] != run.flags:
        raise UserError(f"{path} is of a run with other flags ({found['flags']}); move it")
    if found["attack"] != setup.attack:
        raise UserError(f"{path} is of another attack ({found['attack']}); move it")
    for flag, digest in run.digests().items():
        if found.get("own", {}).get(flag) != digest:
            raise UserError(f"{path} is of a run with another --{flag}: its file has changed; "
                            "move the record and the run's folder away, or rename the study")
    if setup.also and (setup.also not in found
                       or _asked(found[setup.also]) < (setup.also_n or run.n)):
        return None
    if _asked(found) < run.n or (found["n"] > run.n and not found.get("robust")):
        return None
    if found["n"] > run.n:
        for name in ("by_class", "per_attack", "robust_interval"):  # of all n
            found.pop(name, None)
        found |= {"n": run.n, "robust": found["robust"][:run.n],
                  "robust_accuracy": found["robust"][:run.n].count("1") / run.n}
    return found


def _asked(judged: dict) -> int:
    """How many test images an evaluation was asked for. There may be fewer."""
    return judged.get("wanted", judged["n"])


def rows(results: Path, part: Part) -> list[dict]:
    """The records of this part that are there, by seed and arm."""
    return [row for run in part.runs() if (row := record(results, run))]


def summary(rows: list[dict], names: Iterable[str] = ("clean_accuracy", "robust_accuracy")
            ) -> dict[str, dict]:
    """For each arm: how many seeds, and mean and standard deviation of these accuracies."""
    table: dict[str, dict] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        table[arm] = {"seeds": len(mine)}
        for name in names:
            values = [row[name] for row in mine]
            table[arm][name] = float(np.mean(values))
            table[arm][f"{name}_std"] = float(np.std(values, ddof=1)) if len(mine) > 1 else None
    return table
