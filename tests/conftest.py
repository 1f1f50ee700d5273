"""Shared by the tests: small trained runs, made once, and the real data sets where they are."""
import ctypes
import os
import resource
import shutil
import signal
import zlib
from contextlib import contextmanager
from pathlib import Path

import killing
import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from PIL import Image
from pyautoattack import AutoAttack

import train
from advprune import console, plots, reference
from advprune.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TRAINED = ["--dataset", "synthetic", "--limit", "600", "--epochs", "3"]  # of the runs of `trained`
# What a script starts in the background ignores Ctrl-C, and hands that on. These tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """No card is seen without -m gpu: tests compare bits, and two processes need two cards."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def shorter(part):
    """AutoAttack with one `part`th of its steps and queries, which take long."""

    class Shorter(AutoAttack):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for attack in (self.apgd, self.apgd_targeted, self.fab):
                attack.n_iter //= part
            self.square.n_queries //= part

    return Shorter


def row(arm, seed, robust, clean=0.9, **more):
    """A record of a study."""
    return {"arm": arm, "seed": seed, "robust_accuracy": robust, "clean_accuracy": clean, **more}


def inside(count, n, p):
    """Whether a count lies in the binomial 99.9 % interval of its probability."""
    from scipy.stats import binom  # here, because the import takes seconds

    low, high = binom.interval(0.999, n, p)
    return low <= count <= high


def weights(run):
    """The final weights of a run directory."""
    return safetensors.torch.load_file(Path(run) / "model.safetensors")


def same(run, other):
    """Whether two run directories have the same final weights."""
    one, two = weights(run), weights(other)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def make(n=20, size=(28, 28), channels=1, seed=0):
    """(images [N, H, W, C], labels [N]) of noise, as numpy arrays."""
    generator = np.random.default_rng(seed)
    return (generator.integers(256, size=(n, *size, channels), dtype=np.uint8),
            generator.integers(10, size=n))


def write_images(classes, train, val, side=8, root="images"):
    """A folder data set, with so many images of noise of each class to train and to test."""
    generator = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for name in classes:
            place = Path(root, part, name)
            place.mkdir(parents=True)
            for i in range(count):
                values = generator.integers(256, size=(side, side, 3), dtype=np.uint8)
                Image.fromarray(values).save(place / f"{i}.png")


def refused(main, argv, capsys):
    """The one sentence with which main(argv) refuses, before it says anything else."""
    capsys.readouterr()
    with pytest.raises(UserError) as stopped:
        main(argv)
    assert (stopped.value.code, *capsys.readouterr()) == (2, "", "")
    said = str(stopped.value)
    assert len(said.strip().splitlines()) == 1, said
    return said


def ended(main, argv, capsys):
    """(exit code, stdout, lines on stderr) of the script whose function is `main`."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        console.run(lambda: main([str(word) for word in argv]))
    out, err = capsys.readouterr()
    return stopped.value.code, out, err.strip().splitlines()


@contextmanager
def no_file_over(size):
    """Writing fails after `size` bytes of a file, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """No file can be made in this folder, not even by root: it gives up what exempts it."""
    libc, header = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)
    old, new = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    libc.capget(header, old)
    new[:] = old
    new[0] &= ~0b10  # of the effective capabilities, CAP_DAC_OVERRIDE
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    libc.capset(header, new)
    try:
        assert not os.access(folder, os.W_OK, effective_ids=True)
        yield
    finally:
        libc.capset(header, old)
        folder.chmod(mode)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(*flags): the directory of a run on 600 synthetic images, trained once per flags."""
    made = {}

    def make(*flags):
        if flags not in made:
            made[flags] = tmp_path_factory.mktemp("runs") / f"run{len(made)}"
            train.main([*TRAINED, "--out", str(made[flags]), *flags])
        return made[flags]

    return make


@pytest.fixture(scope="session")
def forks():
    """Where killing.Command starts its processes."""
    return killing.server()


@pytest.fixture
def cut_off(monkeypatch):
    """cut_off(epoch): within it, train.py is interrupted as that epoch begins, and must end."""

    @contextmanager
    def interrupted(stop):
        epoch = train.Training.epoch

        def up_to(training, number, bar):
            if number == stop:
                raise KeyboardInterrupt
            epoch(training, number, bar)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(train.Training, "epoch", up_to)
            yield

    return interrupted


@pytest.fixture
def real_data():
    """real_data(folder): the data directory that holds it, or a skip that says what is missing."""

    def find(folder):
        if not (ROOT / "data" / folder).exists():
            pytest.skip(f"data/{folder} is not here; train.py downloads it where it can")
        return str(ROOT / "data")

    return find


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """Each test works in a folder of its own, on the CPU's two threads at most."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    """The pictures of what is pruned are blank: to draw one takes longer than to train."""
    monkeypatch.setattr(plots, "pruned", lambda *_: Figure((1, 1)))


@pytest.fixture
def emulated(request, monkeypatch):
    """The operators are those of the CUDA kernels, which run on the CPU (kernels/emulation.py).

    It is the emulator's library, with what a test may set.
    """
    import emulation  # here: its folder is on the path where its tests are collected

    if shutil.which(emulation.COMPILER) is None:
        pytest.skip(f"the emulator needs a C++ compiler, and {emulation.COMPILER} is not one")
    library, _ = emulation.load()
    library.emulator_tallest(65535)
    library.emulator_shared(227 * 1024)
    library.emulator_seed(zlib.crc32(request.node.name.encode()))
    monkeypatch.setattr(torch.ops, "advprune", torch.ops.advprune_emulated)
    torch.use_deterministic_algorithms(True)  # then new tensors hold NaN or the largest integer
    yield library
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["as built", "emulated", "reference"])
def operators(request, monkeypatch):
    """The operators as they are here, then the CUDA kernels on the CPU, then plain torch."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    if request.param == "reference":
        monkeypatch.setattr(torch.ops, "advprune", reference)
    return request.param


@pytest.fixture
def pages(tmp_path):
    """The folder of a copy of all that `python -m experiments render` reads."""
    for name in ("README.md", "docs", "results", "examples", "figures"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path
