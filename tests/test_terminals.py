"""Odd terminals, devices and learning rates: one sentence at most. A run at chance."""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import train
from advprune import cli

TINY = ["--dataset", "synthetic", "--limit", "40", "--epochs", "2", "--width", "1"]
ASCII = {"PYTHONIOENCODING": "ascii"}
PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def start(*words, env=(), script="train.py", **how):
    return subprocess.run([sys.executable, ROOT / script, *map(str, words)], text=True,
                          capture_output=True, env={**os.environ, **dict(env)}, timeout=300, **how)


@pytest.mark.parametrize("env", [ASCII, PLAIN, {**ASCII, **PLAIN}])
def test_a_path_that_the_terminal_cannot_show(env, tmp_path):
    folder = tmp_path / "übung-訓練"
    folder.mkdir()
    ended = start(*TINY, "--out", folder / "run", "--data-dir", folder, env=env,
                  errors="surrogateescape")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["n_train"] == 40
    ended = start(folder / "run", "--attack", "fgsm", "--n", "9", script="evaluate.py", env=env)
    assert ended.returncode == 0, ended.stderr
    ended = start(folder / "run", "--score", "clean-loss", "--p", "0.5", script="prune.py",
                  env=env)
    assert ended.returncode == 0, ended.stderr
    ended = start("--resume", folder / "run", env=env)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("lines", [0, 1])
def test_a_closed_pipe(lines, tmp_path):
    """`train.py | head -1`, and a reader that is gone before the first line."""
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "train.py", *TINY, "--out", "run"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().strip().splitlines()
    assert process.wait(timeout=300) == 141
    assert len(said) == 1, said
    assert "nobody reads its output any more" in said[0]


def test_a_closed_pipe_of_a_finished_run():
    """Buffered, as without a terminal: the output is written when all is done."""
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *TINY, "--out", "run"],
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    said = [line for line in process.stderr.read().splitlines() if "guessing" not in line]
    assert process.wait(timeout=300) == 141
    assert len(said) == 1, said


def test_a_closed_stdout():
    ended = subprocess.run(["sh", "-c", '"$@" >&-', "sh", sys.executable, ROOT / "train.py",
                            *TINY, "--out", "run"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("flags", [
    ["--device", "meta"], ["--device", "mkldnn"], ["--device", "fpga"], ["--device", "vulkan"],
    ["--device", "lazy"], ["--device", "mps"], ["--device", "hpu"], ["--device", "privateuseone"],
    ["--device", "cuda:77"], ["--device", "cpu:-1"], ["--device", "nosuch"], ["--device", "é"],
    ["--lr", "1e38"], ["--lr", "1e300"], ["--lr", "inf"], ["--lr", "1e999"], ["--alpha", "1e300"],
    ["--weight-decay", "1e300"], ["--beta", "1e300", "--loss", "trades"], ["--lr", "0"],
])
def test_devices_and_numbers_that_cannot_be_meant(flags, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main([*TINY, *flags, "--out", "run"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--lr", "1000"], ["--weight-decay", "1000"],
                                   ["--lr", "1000", "--optimizer", "sgd"],
                                   ["--loss", "trades", "--beta", "1000", "--lr", "9"]])
def test_the_largest_numbers_end_in_words(flags, capsys):
    try:
        train.main([*TINY, *flags, "--out", "run"])
    except SystemExit as stopped:
        assert stopped.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1  # diverged, or at chance


def test_a_line_end_in_a_value_stays_in_one_line(capsys):
    with pytest.raises(SystemExit):
        cli.Parser("").parse_args(["two\nlines"])
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_run_at_chance_says_so(trained, capsys):
    run = ["--dataset", "synthetic", "--limit", "600", "--epochs", "12", "--epsilon", "0.1"]
    train.main([*run, "--lr", "1e-9", "--out", "chance"])
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "guessing among 10 classes" in said[0]
    record = train.main([*run, "--out", "learnt"])
    assert record["clean_accuracy"] > 0.5
    assert not capsys.readouterr().err


def test_meta_is_told_from_a_device_that_holds_data():
    assert cli.device("cpu") == torch.device("cpu")
    with pytest.raises(cli.UserError, match="--device cpu"):
        cli.device("meta")
