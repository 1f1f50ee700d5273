"""Runs of several processes: refused in one sentence; restarted by torchrun, they continue."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import killing
import pytest

from advprune import files

FLAGS = ["--dataset", "synthetic", "--limit", "1000", "--epochs", "5", "--prune", "high",
         "--epoch", "1"]
STATIC = ["--nnodes", "1", "--master-addr", "127.0.0.1", "--master-port"]
C10D = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint"]


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory):
    """The two-process run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    command = killing.Command(forks, "train", folder / "output", processes=2)
    command.run(*FLAGS, "--out", str(folder / "run"))
    return folder / "run"


def process_of_rank(torchrun, rank):
    """The number of torchrun's child process of this rank."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError("it has no such process")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "rank", "moment"), [
    ("static", 1, "state.pt"), ("static", 0, "config.json"), ("c10d", 1, "state.pt"),
    ("c10d", 0, "config.json")])
def test_torchrun_restarts_into_the_same_run(whole, tmp_path, backend, rank, moment):
    """`moment`: the file whose appearance is answered by SIGKILL; config.json: the first epoch."""
    port, run = killing.free_port(), tmp_path / "run"
    where = [*STATIC, str(port)] if backend == "static" else [*C10D, f"127.0.0.1:{port}"]
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--max-restarts", "1", *where, "--", str(killing.ROOT / "train.py"), *FLAGS,
         "--out", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"))
    killing.until(lambda: (run / moment).exists() or torchrun.poll() is not None)
    os.kill(process_of_rank(torchrun.pid, rank), signal.SIGKILL)
    printed = torchrun.communicate()[0]
    errors = (tmp_path / "errors").read_text()
    assert torchrun.returncode == 0, errors
    assert "SIGKILL" in errors or "exitcode: -9" in errors  # it did have to restart
    assert json.loads(printed.splitlines()[-1])["run"] == str(run)
    assert killing.results(run) == killing.results(whole)


@pytest.mark.parametrize(("flags", "words"), [
    (["--epochs", "0"], "must be at least 1"), (["--out", "taken"], "taken exists already"),
    (["--out", "locked"], "is in use by another process"),
    (["--dataset", "folder", "--data-dir", "nothing"], "holds no images")])
def test_what_is_refused_is_one_sentence_of_all_processes(forks, tmp_path, flags, words):
    for name in ("taken", "locked"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken/file").touch()
    command = killing.Command(forks, "train", tmp_path / "output", processes=2)
    with files.locked(tmp_path / "locked/.lock"):
        started = command.start("--dataset", "synthetic", "--limit", "40", *flags)
        for process in started:
            process.join()
    said = (tmp_path / "output").read_text()
    assert all(process.exitcode for process in started) and "Traceback" not in said
    assert said.count(words) == 1
