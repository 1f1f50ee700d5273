"""A study whose runs take no time."""
from pathlib import Path

import killing

from experiments import studies

STUDY = """
attack = "{attack}"
also = "{also}"
[setup]
dataset = "synthetic"
limit = 200
epochs = 2
[arms]
full = {{}}
"random-0.3-from-start" = {{ prune = "random", p = 0.3, epoch = 0 }}
"margin-0.3" = {{ prune = "high", p = 0.3, scores = "{{margins}}" }}
"puma-0.3" = {{ prune = "puma", p = 0.3, scores = "{{margins}}" }}
[parts.puma]
arms = {arms}
seeds = 1
n = 5
"""
ARMS = ("full", "random-0.3-from-start", "margin-0.3", "puma-0.3")


def add(arms=ARMS, attack="pgd", also=""):
    """Make an experiment `puma` of these arms, by a file in the current folder."""
    Path("tiny.toml").write_text(STUDY.format(arms=list(arms), attack=attack, also=also))
    studies.read.cache_clear()
    studies.EXPERIMENTS["puma"] = studies.read(str(Path("tiny.toml").resolve())).parts


def command(argv, log):
    """The body of a process: `python -m experiments` with these words."""
    add()
    killing.script("experiments.__main__", argv, log)
