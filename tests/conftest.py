"""Shared by the tests: small trained runs, made once, and the real data sets where they are."""
from contextlib import contextmanager
from pathlib import Path

import killing
import pytest
import torch

import train

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(*flags): the directory of a run on 600 synthetic images, trained once per flags."""
    made = {}

    def make(*flags):
        if flags not in made:
            made[flags] = tmp_path_factory.mktemp("runs") / f"run{len(made)}"
            train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--out",
                        str(made[flags]), *flags])
        return made[flags]

    return make


@pytest.fixture(scope="session")
def forks():
    """Where killing.Command starts its processes."""
    return killing.server()


@pytest.fixture
def cut_off(monkeypatch):
    """cut_off(epoch): within it, train.py is interrupted as that epoch begins, and must exit."""

    @contextmanager
    def interrupted(stop):
        epoch = train.Training.epoch

        def up_to(training, number, bar):
            if number == stop:
                raise KeyboardInterrupt
            epoch(training, number, bar)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
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
