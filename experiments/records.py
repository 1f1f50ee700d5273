"""The records in results/, and how their numbers stand in Markdown."""
import re
from functools import cache
from pathlib import Path

from advprune.run import read_record
from experiments import studies


class Records:
    """The records of a folder: records["puma-mnist"] is the content of puma-mnist.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study = cache(self._study)  # many tables are of the same runs, each a file

    def __getitem__(self, name: str) -> dict:
        return read_record(self.folder / f"{name}.json")

    def __contains__(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def _study(self, experiment: str, setup: str) -> dict:
        """rows, summary, n and source of an experiment's runs of this setup."""
        part = next(p for p in studies.EXPERIMENTS[experiment] if p.setup == setup)
        rows = studies.rows(self.folder, part)
        return {"rows": rows, "summary": studies.summary(rows), "n": part.n, "source":
                f"\nFrom `results/{setup}/` (`python -m experiments {experiment} --dataset "
                f"{part.dataset}`).\n"}


def spread(row: dict, name: str) -> str:
    """Mean +- standard deviation over seeds."""
    return f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"


# Older records have the scripts' earlier names, and where this copy was written.
RENAMED = {r"python benchmark\.py": "python -m benchmarks",
           r"python (geometry|perceptron)\.py": r"python -m experiments \1",
           r" --readings| --json \S+": ""}


def source(name: str, record: dict) -> str:
    """Where this record lies, and the command that repeats it today."""
    command = record["command"]
    for before, now in RENAMED.items():
        command = re.sub(before, now, command)
    return f"\nFrom `results/{name}.json` (`{command}`).\n"
