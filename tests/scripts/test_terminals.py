"""Odd terminals, devices and learning rates: one sentence at most. A run at chance."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, ended

import train
from advprune import console
from advprune.errors import UserError

TINY = ["--dataset", "synthetic", "--limit", "40", "--epochs", "2", "--width", "1"]
ASCII = {"PYTHONIOENCODING": "ascii"}
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def start(*words, env=(), **how):
    return subprocess.run([sys.executable, ROOT / "train.py", *map(str, words)], text=True,
                          capture_output=True, env={**os.environ, **dict(env)}, **how)


@pytest.mark.parametrize("env", [
    {**ASCII, **PLAIN}, *(pytest.param(env, marks=pytest.mark.slow) for env in (ASCII, PLAIN))])
def test_a_path_that_the_terminal_cannot_show(env, tmp_path):
    folder = tmp_path / "übung-訓練"
    folder.mkdir()
    done = start(*TINY, "--out", folder / "run", "--data-dir", folder, env=env,
                  errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["n_train"] == 40


@pytest.mark.parametrize("lines", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_closed_pipe(lines, tmp_path):
    """`train.py | head -1`, and a reader that is gone before the first line."""
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "train.py", *TINY, "--out", "run"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().strip().splitlines()
    assert process.wait() == 141
    assert len(said) == 1, said
    assert "nobody reads its output any more" in said[0]


@pytest.mark.slow
def test_a_closed_pipe_of_a_finished_run():
    """Buffered, as without a terminal: the output is written when all is done."""
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *TINY, "--out", "run"],
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = [line for line in process.stderr.read().splitlines() if "guessing" not in line]
    assert process.wait() == 141
    assert len(said) == 1, said


@pytest.mark.slow
def test_a_closed_stdout():
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", sys.executable, ROOT / "train.py",
                            *TINY, "--out", "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flags", [["--lr", "1000"], ["--weight-decay", "1000"],
                                   ["--lr", "1000", "--optimizer", "sgd"],
                                   ["--loss", "trades", "--beta", "1000", "--lr", "9"]])
def test_the_largest_numbers_end_in_words(flags, capsys):
    code, _, said = ended(train.main, [*TINY, *flags, "--out", "run"], capsys)
    assert code in (0, 2) and len(said) == 1  # diverged, or at chance


def test_a_line_end_in_a_value_stays_in_one_line():
    with pytest.raises(UserError, match="two lines"):
        console.Parser("").parse_args(["two\nlines"])
