"""Command lines drawn at random over the scripts: accepted and run, or refused in one sentence.

An example has 0 to 3 flags of one script, with values that fit, that do not, and odd ones. Tiny
runs on `synthetic` are what is accepted. Few are drawn by default; `-m slow` draws 2,000.
"""
import json
import os
import shlex
import shutil
import sys
import traceback
from collections import Counter

import numpy as np
import pytest
import torchvision.datasets
from conftest import ended, shorter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import evaluate
import prune
import toy_model
import train
from advprune import data, evaluation, plots

WHOLE = ["1", "2", "3", "0", "-1", "x", "1.5", "", "9" * 30]
REAL = ["0.1", "0.3", "8./255", "0", "1", "-1", "2", "nan", "inf", "1e38", "1/0", "x", "1e-3"]
SHARE = ["0.2", "0.5", "0", "0.9", "1", "1.5", "-0.1", "nan", "x"]
SEED = ["0", "1", "7", "-1", str(2**64), "x"]
FOLDER = ["new", "deep/new", "new ü", "a$b$_{", "afile/x", ".", "afile", "ready", "x" * 300]
FILE = ["new.json", "new ü.json", "afile/x", ".", "nodir/x.json", "afile"]
ODD = ["afile", "nothing", ".", "empty", "null.json"]
DEVICE = ["cpu", "cpu", "meta", "cuda:9", "x"]
DATA = ["synthetic"] * 6 + ["digits", "mnist", "cifar10", "cifar100", "svhn", "fashion-mnist",
                            "folder", "imagenet"]

TRAIN = {
    "--limit": ["20", "33", "60", "1", *WHOLE], "--batch-size": ["8", "32", "1", *WHOLE],
    "--prune": ["none", "random", "high", "low", "low+high", "middle", "extremes", "puma", "most"],
    "--p": SHARE, "--epoch": ["0", "1", "2", "-1", "x"], "--scores": ["run/scores.npz", *ODD],
    "--score": ["loss", "clean-loss", "margin", "running-loss", "x"], "--class-balanced": None,
    "--score-model": ["run", "first", *ODD], "--first-epochs": WHOLE,
    "--margin-norm": ["linf", "l2", "l1"], "--margin-classes": ["2", "3", *WHOLE],
    "--adapt-fraction": SHARE, "--eps-floor": SHARE,
    "--recipe": ["paper", "robust", "wang2023", "authors", "x"],
    "--schedule": ["cyclic", "cyclic-fixed", "cosine", "x"], "--score-augmented": None,
    "--attack": ["none", "rs-fgsm", "n-fgsm", "pgd", "x"],
    "--on-collapse": ["warn", "stop", "rollback", "off", "x"], "--epsilon": REAL, "--alpha": REAL,
    "--pgd-steps": ["1", "2", "0", "x"], "--optimizer": ["sgd", "adam", "adamw", "x"],
    "--lr": REAL, "--weight-decay": REAL, "--loss": ["cross-entropy", "trades", "x"],
    "--beta": REAL, "--label-smoothing": SHARE, "--ema": SHARE,
    "--model": ["mnist-net", "preactresnet18", "wideresnet28-10", "vgg11", "x", "net.py:net",
                "net.py:gone", "gone.py:net", "googlenet"],
    "--pretrained": ["run/model.safetensors", *ODD], "--seed": SEED,
    "--mean": ["none", "0.5", "0.5,0.5", "x"], "--std": ["0.5", "none", "0"],
    "--precision": ["fp32", "bf16", "tf32", "x"],
    "--out": FOLDER, "--device": DEVICE, "--resume": ["run", "cut", *ODD], "--trust-code": None,
    "--image-size": WHOLE, "--skip-bad": None, "--extra-data": ["extra.npz", *ODD],
    "--minutes": ["0.01", "0", "-1", "nan", "x"],
    "--labels": ["labels.npy", "run/scores.npz", *ODD],
    "--extra-fraction": SHARE, "--data-dir": ["empty", "afile", "nothing"],
    "--cache-dir": ["cache", "afile"], "--momentum": SHARE, "--epo": ["3"], "--": None}
EVALUATE = {
    "--attack": ["clean", "fgsm", "clean,fgsm", "x", "", "fgsm,x", ","], "--n": ["4", "9", *WHOLE],
    "--epsilon": REAL, "--batch-size": ["3", *WHOLE], "--seed": SEED, "--out": FILE,
    "--export": FOLDER, "--until": ["0.5", *SHARE], "--device": DEVICE, "--dataset": DATA,
    "--weights": ["run/model.safetensors", *ODD],
    "--model": ["mnist-net", "preactresnet18", "x"], "--width": WHOLE, "--image-size": WHOLE,
    "--mean": ["none", "0.5", "0.5,0.5", "x"], "--std": ["0.5", "none", "0"],
    "--skip-bad": None, "--data-dir": ["empty", "afile"], "--cache-dir": ["cache"],
    "--save": ["new.npz", *FILE], "--pictures": ["new.png", *FILE], "--trust-code": None}
PRUNE = {
    "--score": ["loss", "clean-loss", "margin", "running-loss", "x"],
    "--margin-norm": ["linf", "l2", "x"],
    "--margin-classes": WHOLE, "--prune": TRAIN["--prune"], "--p": SHARE,
    "--class-balanced": None, "--batch-size": ["7", *WHOLE], "--data-dir": ["empty", "afile"],
    "--cache-dir": ["cache"], "--extra-data": ["extra.npz", *ODD], "--labels": ODD,
    "--suspects": WHOLE,
    "--out": FOLDER,
    "--device": DEVICE, "--trust-code": None}
TOY = {"--n": ["100", "200", *WHOLE], "--d": ["2", "5", *WHOLE], "--p-R": SHARE,
       "--p-robust": SHARE, "--p-fragile": SHARE, "--eta": REAL, "--seed": SEED, "--out": FOLDER}


def lines(script, first, flags):
    """Command lines (script, words) of these first words, and 0 to 3 flags."""
    def words(name):
        values = flags[name]
        if values is None:
            return st.just([name])
        one = st.sampled_from(range(len(values)))  # the first are the good ones: prefer them
        return st.tuples(one, one).map(lambda pair: [name, values[min(pair)]])
    drawn = st.lists(st.sampled_from(list(flags)), max_size=3, unique=True).flatmap(
        lambda names: st.tuples(*map(words, names)))
    return st.tuples(st.sampled_from(first), drawn).map(
        lambda pair: (script, [*pair[0], *(word for flag in pair[1] for word in flag)]))


TINY = ["--dataset", "synthetic", "--limit", "24", "--epochs", "3", "--width", "1"]
COMMANDS = st.one_of(
    lines(train, [TINY], {k: v for k, v in TRAIN.items() if k != "--limit"}),
    lines(train, [TINY], {k: TRAIN[k] for k in ("--prune", "--p", "--epoch", "--score", "--lr",
                                                "--attack", "--optimizer", "--seed")}),
    lines(train, [TINY, TINY[:2] + TINY[4:], ["--width", "1", "--limit", "20", "--epochs", "1"],
                  ["--resume", "cut"], ["--dataset", "mnist"], ["--dataset", "folder"]], TRAIN),
    lines(evaluate, [["run", "--n", "5", "--attack", "fgsm"], ["run"], [],
                     ["nothing", "--n", "5"], ["empty"], ["cut"]], EVALUATE),
    lines(prune, [["run"], ["run"], ["cut"], ["nothing"], []], PRUNE),
    lines(toy_model, [["--n", "100"], [], ["x"]], TOY))


def no_download(*_, **__):
    raise RuntimeError("this test downloads nothing")


@pytest.fixture
def small(monkeypatch):
    """No downloads, few test images, short attacks, no waiting for the disk, and no toy model."""
    monkeypatch.setattr(evaluation, "AutoAttack", shorter(50))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(sys, "argv", ["script.py"])  # argparse's name of every script here
    for kind in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN"):
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", no_download)
    monkeypatch.setattr(toy_model, "study", lambda toy, n, seed: {"n": n})
    monkeypatch.setattr(toy_model, "report", print)
    for draw in ("toy", "pruned"):
        monkeypatch.setattr(plots, draw, lambda *_: Figure())
    load = data.load
    monkeypatch.setattr(data, "load", lambda *args, **how: few(load(*args, **how)))


def few(loaded):
    """The data set with 16 test images."""
    loaded.test_images, loaded.test_labels = loaded.test_images[:16], loaded.test_labels[:16]
    return loaded


@pytest.fixture
def template(tmp_path, trained, cut_off):
    """What each example finds in its folder: a run, one that was cut off, odd files."""
    place = tmp_path / "template"
    (place / "empty").mkdir(parents=True)
    (place / "afile").write_text("text")
    (place / "null.json").write_text("null")
    (place / "net.py").write_text("import torch\ndef net(classes, channels, size):\n    return "
                                  "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear("
                                  "channels * size**2, classes))\n")
    np.savez(place / "extra.npz", image=np.zeros((9, 28, 28), np.uint8),
             label=np.zeros(9, np.int64))
    np.save(place / "labels.npy", np.zeros(2000, np.int64))
    flags = [*TINY, "--prune", "high", "--epoch", "1"]
    train.main([*flags, "--out", str(place / "run")])
    with cut_off(1):
        train.main([*flags, "--out", str(place / "cut")])
    (place / "ready").mkdir()
    return place


def listing(place):
    return sorted((str(path.relative_to(place)), path.stat().st_size if path.is_file() else None)
                  for path in place.rglob("*"))


def check(script, words, template, place, capsys):
    """Run one command line in a copy of the template, a new one if need be; its exit code."""
    before = listing(template)
    if not place.exists() or listing(place) != before:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        os.chdir(place)
    records = []
    code, out, said = ended(lambda words: records.append(script.main(words)) or records[-1],
                            words, capsys)
    assert code in (0, 2, 3), (code, said)
    if code == 0:
        assert json.loads(out.splitlines()[-1]) == json.loads(json.dumps(records[-1]))
        return code
    begun = code == 3 or any(words in said[-1] for words in ("diverged", "not finite"))
    assert len(said) == 1 or begun, said
    assert ".py: " in said[-1], said
    assert listing(place) == before or begun
    return code


def explore(examples, at_least, one_of, judge):
    """Draw so many command lines. judge(script, words): the exit code of one."""
    counts, failures, codes = Counter(), [], {}

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    @given(one_of)
    def one(command):
        script, words = command
        line = f"{script.__name__}.py {shlex.join(words)}"
        if line in codes:  # drawn again: it is judged once
            return
        try:
            code = judge(script, words)
        except Exception:  # the others are worth knowing too, and are not to be shrunk
            code = "failed"
            failures.append("\n".join([line, *traceback.format_exc().splitlines()[-6:]]))
        codes[line] = code
        counts[code] += 1
        counts[script.__name__, code] += 1

    one()
    print(dict(counts))
    assert not failures, f"{len(failures)} failed:\n" + "\n\n".join(failures[:20])
    assert counts[0] >= at_least
    assert all(counts[script, 2] for script in ("train", "evaluate", "prune"))


def test_command_lines(template, small, tmp_path, capsys):
    explore(150, 12, COMMANDS, lambda script, words: check(
        script, words, template, tmp_path / "place", capsys))


@pytest.mark.slow
def test_two_thousand_command_lines(template, small, tmp_path, capsys):
    explore(2000, 120, COMMANDS, lambda script, words: check(
        script, words, template, tmp_path / "place", capsys))
