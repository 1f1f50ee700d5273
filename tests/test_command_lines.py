"""Command lines drawn at random over all scripts: accepted and run, or refused in one sentence.

An example has 0 to 3 flags of one script, with values that fit, that do not, and odd ones. Tiny
runs on `synthetic` are what is accepted. 400 examples by default; `-m slow` draws all 2,000.
"""
import json
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections import Counter

import pytest
import torch
import torchvision.datasets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import benchmark
import evaluate
import geometry
import perceptron
import prune
import reproduce
import toy_model
import train
from advprune import plots

SECONDS = 60  # an example that takes longer hangs

WHOLE = ["1", "2", "3", "0", "-1", "x", "1.5", "", "9" * 30]
REAL = ["0.1", "0.3", "8/255", "0", "1", "-1", "2", "nan", "inf", "1e38", "1/0", "x", "1e-3"]
SHARE = ["0.2", "0.5", "0", "0.9", "1", "1.5", "-0.1", "nan", "x"]
SEED = ["0", "1", "7", "-1", str(2**64), "x"]
FOLDER = ["new", "deep/new", "new ü", "a$b$_{", "afile/x", ".", "afile", "ready", "x" * 300]
FILE = ["new.json", "new ü.json", "afile/x", ".", "nodir/x.json", "afile"]
ODD = ["afile", "nothing", ".", "empty", "null.json"]
DEVICE = ["cpu", "cpu", "meta", "cuda:9", "x"]
DATA = ["synthetic"] * 6 + ["digits", "mnist", "cifar10", "fashion-mnist", "folder", "imagenet"]

TRAIN = {
    "--limit": ["20", "33", "60", "1", *WHOLE], "--batch-size": ["8", "32", "1", *WHOLE],
    "--prune": ["none", "random", "high", "low", "low+high", "middle", "puma", "most"],
    "--p": SHARE, "--epoch": ["0", "1", "2", "-1", "x"], "--scores": ["run/scores.npz", *ODD],
    "--score": ["loss", "clean-loss", "margin", "running-loss", "x"], "--class-balanced": None,
    "--margin-model": ["run", *ODD], "--margin-norm": ["linf", "l2", "l1"],
    "--margin-steps": ["2", "5", *WHOLE], "--margin-classes": ["2", "3", *WHOLE],
    "--adapt-eps": None, "--adapt-fraction": SHARE, "--eps-floor": SHARE,
    "--recipe": ["paper", "robust", "x"], "--attack": ["none", "rs-fgsm", "n-fgsm", "pgd", "x"],
    "--on-collapse": ["warn", "stop", "rollback", "x"], "--epsilon": REAL, "--alpha": REAL,
    "--pgd-steps": ["1", "2", "0", "x"], "--optimizer": ["sgd", "adam", "adamw", "x"],
    "--lr": REAL, "--momentum": SHARE, "--nesterov": None, "--weight-decay": REAL,
    "--schedule": ["cyclic", "cosine", "x"], "--loss": ["cross-entropy", "trades", "x"],
    "--beta": REAL, "--label-smoothing": SHARE, "--ema": SHARE,
    "--model": ["mnist-net", "preactresnet18", "wideresnet28-10", "vgg11", "x", "net.py:net",
                "net.py:gone", "gone.py:net", "googlenet"],
    "--pretrained": ["run/model.safetensors", *ODD], "--seed": SEED,
    "--precision": ["fp32", "bf16", "tf32", "x"],
    "--out": FOLDER, "--device": DEVICE, "--resume": ["run", "cut", *ODD], "--trust-code": None,
    "--image-size": WHOLE, "--skip-bad": None, "--extra-data": ["extra.npz", *ODD],
    "--extra-fraction": SHARE, "--data-dir": ["empty", "afile", "nothing"],
    "--cache-dir": ["cache", "afile"], "--tensorboard": None, "--epo": ["3"], "--": None}
EVALUATE = {
    "--attack": ["clean", "fgsm", "clean,fgsm", "x", "", "fgsm,x", ","], "--n": ["4", "9", *WHOLE],
    "--epsilon": REAL, "--batch-size": ["3", *WHOLE], "--seed": SEED, "--out": FILE,
    "--until": ["0.5", *SHARE], "--device": DEVICE, "--dataset": DATA,
    "--weights": ["run/model.safetensors", *ODD],
    "--model": ["mnist-net", "preactresnet18", "x"], "--width": WHOLE, "--image-size": WHOLE,
    "--skip-bad": None, "--data-dir": ["empty", "afile"], "--cache-dir": ["cache"],
    "--trust-code": None}
PRUNE = {
    "--score": ["loss", "clean-loss", "margin", "running-loss", "x"],
    "--norm": ["linf", "l2", "x"],
    "--classes": WHOLE, "--steps": WHOLE, "--prune": TRAIN["--prune"], "--p": SHARE,
    "--class-balanced": None, "--batch-size": ["7", *WHOLE], "--data-dir": ["empty", "afile"],
    "--cache-dir": ["cache"], "--out": FOLDER, "--device": DEVICE, "--trust-code": None}
TOY = {"--n": ["100", "200", *WHOLE], "--d": ["2", "5", *WHOLE], "--p-R": SHARE,
       "--p-robust": SHARE, "--p-fragile": SHARE, "--eta": REAL, "--seed": SEED, "--out": FOLDER}
GEOMETRY = {"--pruned": ["run/scores.npz", *ODD], "--n": ["100", *WHOLE],
            "--data-dir": ["empty", "afile"], "--seed": SEED, "--out": FOLDER}
BENCHMARK = {"--json": FILE, "--figure": FILE, "--data-dir": ["empty"], "--device": DEVICE}
TIMED = {**BENCHMARK, "--dataset": DATA, "--limit": ["20", "33", *WHOLE], "--width": ["1", "x"],
         "--precision": ["fp32", "bf16", "tf32", "x"], "--epochs": ["2", "3", *WHOLE],
         "--rounds": ["1", "0", "x"], "--model": ["mnist-net", "vgg11", "x", "gone.py:net"]}
REPRODUCE = {"--seeds": ["2", "0-1", "1-0", *WHOLE], "--n-eval": WHOLE, "--jobs": ["1", "0", "x"],
             "--arms": ["full", "x", "", "full,x"], "--dataset": DATA,
             "--budget": REAL, "--data-dir": ["empty", "afile"]}


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


TINY = ["--dataset", "synthetic", "--limit", "40", "--epochs", "4", "--width", "1"]
COMMANDS = st.one_of(
    lines(train, [TINY], {k: v for k, v in TRAIN.items() if k != "--limit"}),
    lines(train, [TINY], {k: TRAIN[k] for k in ("--prune", "--p", "--epoch", "--score", "--lr",
                                                "--attack", "--optimizer", "--seed")}),
    lines(train, [TINY, TINY[:2] + TINY[4:], ["--width", "1", "--limit", "20", "--epochs", "1"],
                  ["--resume", "cut"], ["--dataset", "mnist"], ["--dataset", "folder"]], TRAIN),
    lines(evaluate, [["run", "--n", "5", "--attack", "fgsm"], ["run"], [],
                     ["nothing", "--n", "5"], ["empty"], ["cut"]], EVALUATE),
    lines(prune, [["run"], ["run"], ["cut"], ["nothing"], []], PRUNE),
    lines(toy_model, [["--n", "100"], [], ["x"]], TOY),
    lines(perceptron, [[], ["x"]], {"--seed": SEED, "--out": FOLDER}),
    lines(geometry, [["synthetic"], ["synthetic", "digits"], ["mnist"], [], ["x"]], GEOMETRY),
    lines(benchmark, [["kernels"], ["ablation"], [], ["x"]], BENCHMARK),
    lines(benchmark, [["training"], ["scale", "--epochs", "2"], ["layouts"]], TIMED),
    lines(reproduce, [["digits"], ["puma", "--dataset", "mnist"], ["gpu"], ["x"], []],
          REPRODUCE))


def no_download(*_, **__):
    raise RuntimeError("this test downloads nothing")


@pytest.fixture
def small(monkeypatch):
    """No downloads, and less work than the studies and benchmarks do."""
    monkeypatch.setattr(sys, "argv", ["script.py"])  # argparse's name of every script here
    for kind in ("MNIST", "FashionMNIST", "CIFAR10"):
        monkeypatch.setattr(getattr(torchvision.datasets, kind), "download", no_download)
    monkeypatch.setattr(benchmark.kernels, "BATCHES", [(4, 1, 8, 8)])
    monkeypatch.setattr(benchmark.kernels, "SELECTIONS", [100])
    monkeypatch.setattr(benchmark.kernels, "median_us", lambda call, *_: (call(), 1.0)[1])
    monkeypatch.setattr(benchmark.layouts, "NETWORKS", [("mnist-net", 1, 1, 28, 4)])
    monkeypatch.setattr(benchmark.layouts, "SECONDS", 0)
    monkeypatch.setattr(benchmark.scale, "memory", lambda *_: [])
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    monkeypatch.setattr(toy_model, "study", lambda toy, n, seed: {"n": n})
    monkeypatch.setattr(perceptron, "study", lambda seed: {"seed": seed})
    for script, draw in (toy_model, "toy"), (perceptron, "perceptron"):
        monkeypatch.setattr(script, "report", print)
        monkeypatch.setattr(plots, draw, lambda record: Figure())
    load, TSNE = geometry.data.load, geometry.TSNE
    monkeypatch.setattr(geometry.data, "load", lambda name, *args, **how: few(load, name, args,
                                                                             how))
    monkeypatch.setattr(geometry, "TSNE", lambda **how: TSNE(**how, max_iter=250))
    monkeypatch.setattr(reproduce, "run_arm", lambda run, *_: {"robust_accuracy": 0.5})
    monkeypatch.setattr(reproduce.studies, "record", lambda results, run: {
        "arm": run.arm, "clean_accuracy": 0.5, "robust_accuracy": 0.5})
    for name in reproduce.SCRIPTS:
        monkeypatch.setitem(reproduce.SCRIPTS, name, lambda args: "made")


def few(load, name, args, how):
    """The data set with 16 test images, and 200 to train on where there is no other limit."""
    loaded = load(name, *args, **how)
    if len(loaded.labels) > 200 and not how.get("limit"):
        loaded.images, loaded.labels = loaded.images[:200], loaded.labels[:200]
        loaded.original = 200
    loaded.test_images = loaded.test_images[:16]
    loaded.test_labels = loaded.test_labels[:16]
    return loaded


@pytest.fixture
def template(tmp_path, trained, cut_off, capsys):
    """What each example finds in its folder: a run, one that was cut off, odd files."""
    import numpy as np

    place = tmp_path / "template"
    (place / "empty").mkdir(parents=True)
    (place / "afile").write_text("text")
    (place / "null.json").write_text("null")
    (place / "net.py").write_text("import torch\ndef net(classes, channels, size):\n    return "
                                  "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear("
                                  "channels * size**2, classes))\n")
    np.savez(place / "extra.npz", image=np.zeros((9, 28, 28), np.uint8),
             label=np.zeros(9, np.int64))
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
    """Run one command line in a copy of the template; its exit code, and whether it was quick."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(template, place)
    os.chdir(place)
    before = listing(place)
    capsys.readouterr()
    signal.alarm(SECONDS)
    try:
        record, code = script.main(words), 0
    except SystemExit as stopped:
        record, code = None, stopped.code
    finally:
        signal.alarm(0)
    out, err = capsys.readouterr()
    assert code in (0, 2, 3), (code, err)
    if code == 0:
        assert json.loads(out.splitlines()[-1]) == json.loads(json.dumps(record))
    else:
        said = err.strip().splitlines()
        begun = code == 3 or "diverged" in err or "not finite" in err
        assert len(said) == 1 or begun, err
        assert ".py: " in said[-1], err
        assert listing(place) == before or begun
    return code


def late(*_):
    raise TimeoutError(f"it took more than {SECONDS} seconds")


def explore(examples, at_least, template, tmp_path, capsys):
    counts, times, failures = Counter(), Counter(), []
    signal.signal(signal.SIGALRM, late)

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))
    @given(COMMANDS)
    def one(command):
        script, words = command
        start = time.monotonic()
        try:
            code = check(script, words, template, tmp_path / "place", capsys)
        except Exception:  # the others are worth knowing too, and are not to be shrunk
            code = "failed"
            failures.append(f"{script.__name__}.py {shlex.join(words)}\n"
                            + "\n".join(traceback.format_exc().splitlines()[-6:]))
        counts[code] += 1
        counts[script.__name__, code] += 1
        times[script.__name__] += time.monotonic() - start

    one()
    done = sum(counts[code] for code in (0, 2, 3, "failed"))
    with capsys.disabled():
        print(f"\n{done} command lines, {counts[0]} accepted: "
              f"{dict(counts)}, {({name: round(t) for name, t in times.items()})} s")
    assert not failures, f"{len(failures)} failed:\n" + "\n\n".join(failures[:20])
    assert counts[0] >= at_least
    assert all(counts[script, 2] for script in (
        "train", "evaluate", "prune", "toy_model", "perceptron", "geometry", "benchmark",
        "reproduce"))


def test_command_lines(template, small, tmp_path, capsys):
    explore(400, 60, template, tmp_path, capsys)


@pytest.mark.slow
def test_two_thousand_command_lines(template, small, tmp_path, capsys):
    explore(2000, 300, template, tmp_path, capsys)
