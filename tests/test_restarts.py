"""Runs of several processes: torchrun restarts them, and those that find no partner give up."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import killing
import pytest
import torch.distributed as dist

FLAGS = ["--dataset", "synthetic", "--limit", "1000", "--epochs", "5", "--prune", "high",
         "--epoch", "1"]
STATIC = ["--nnodes", "1", "--master-addr", "127.0.0.1", "--master-port"]
C10D = ["--nnodes", "1", "--rdzv-backend", "c10d", "--rdzv-id", "test", "--rdzv-endpoint"]


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory):
    """The two-process run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    command = killing.Command(forks, "train", folder / "output", processes=2)
    command.wait(command.start(*FLAGS, "--out", str(folder / "run")))
    return folder / "run"


def process_of_rank(torchrun, rank):
    """The number of torchrun's child process of this rank."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise AssertionError("it has no such process")


@pytest.mark.parametrize(("backend", "out", "rank", "moment"), [
    ("static", True, 1, "state.pt"), ("c10d", False, 0, "state.pt"),
    ("static", True, 0, "config.json"),
    pytest.param("static", False, 1, "state.pt", marks=pytest.mark.slow),
    pytest.param("c10d", True, 1, "config.json", marks=pytest.mark.slow),
])
def test_torchrun_restarts_into_the_same_run(whole, tmp_path, backend, out, rank, moment):
    """`moment`: the file whose appearance is answered by SIGKILL; config.json: the first epoch."""
    port = killing.free_port()
    where = [*STATIC, str(port)] if backend == "static" else [*C10D, f"127.0.0.1:{port}"]
    run = tmp_path / ("run" if out else "runs/synthetic-rs-fgsm-high-p0.4-e1-s0")
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--max-restarts", "1", *where, "--", str(killing.ROOT / "train.py"), *FLAGS,
         *(["--out", str(run)] if out else [])],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE,
        stderr=(tmp_path / "errors").open("w"))
    killing.until(lambda: (run / moment).exists() or torchrun.poll() is not None)
    os.kill(process_of_rank(torchrun.pid, rank), signal.SIGKILL)
    if moment == "config.json":
        assert not (run / "state.pt").exists(), "the kill came too late"
    printed = torchrun.communicate(timeout=180)[0]
    errors = (tmp_path / "errors").read_text()
    assert torchrun.returncode == 0, errors
    assert "SIGKILL" in errors or "exitcode: -9" in errors  # it did have to restart
    assert Path(json.loads(printed.splitlines()[-1])["run"]).resolve() == run
    assert killing.results(run) == killing.results(whole)
    assert [path.name for path in run.parent.glob("*synthetic*")] == ([] if out else [run.name])


@pytest.mark.parametrize("case", ["no second", "no first", "silent"])
def test_processes_that_cannot_connect_end_soon(forks, tmp_path, case):
    port, log = killing.free_port(), tmp_path / "log"
    environ = {"WORLD_SIZE": "2", "RANK": str(int(case == "no first")),
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    start = time.monotonic()
    process = forks.Process(target=killing.script, args=(
        "train", [*FLAGS, "--out", str(tmp_path / "run")], log, environ, False, 3))
    process.start()
    if case == "silent":  # the second finds the first's address, and then does nothing
        partner = dist.TCPStore("127.0.0.1", port, 2, False)
    process.join(60)
    assert process.exitcode == 1 and time.monotonic() - start < 20
    lines = [line for line in log.read_text().splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and "did not reach the others" in lines[0]
    assert "Traceback" not in log.read_text() and not (tmp_path / "run").exists()
    if case == "silent":
        del partner
