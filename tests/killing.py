"""Scripts as processes that tests kill, and what two runs must have in common.

A fork server imports torch and the scripts once; each process is a fork of it and starts at once.
"""
import contextlib
import csv
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def server():
    """The context that starts processes, with a fork server of one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["matplotlib.figure", "sklearn.datasets", "train", "prune",
                                    "evaluate",
                                    "torch._dynamo"])  # the first optimiser imports it
    first = context.Process(target=len, args=("",))  # which waits for these imports
    first.start()
    first.join()
    return context


def script(name, argv, log, environ=None, collapse=False):
    """The body of a process: the script `name` with these words, its output in the file `log`.

    collapse: the second epoch collapses once.
    """
    import importlib

    import torch

    from advprune import console, guard

    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environ or {})
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if collapse:
        watch = guard.Guard.watch

        def collapses_in_epoch_2(self, training):
            seen = training.rows[-1]["epoch"] == 2 and training.attack["kind"] != "pgd"
            guard.collapse = lambda rows: "from 0.800 to 0.100" if seen else None
            return watch(self, training)

        guard.Guard.watch = collapses_in_epoch_2
        guard.due = lambda settings, *_: set(range(1, settings.epochs + 1))
    sys.argv = [f"{name}.py", *argv]
    console.run(importlib.import_module(name).main)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Command:
    """One command, to be started any number of times: `processes` of it at a time."""

    def __init__(self, context, name, log, processes=1, collapse=False):
        self.context, self.name, self.log = context, name, log
        self.processes, self.collapse = processes, collapse

    def start(self, *argv):
        """Start it; the processes."""
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                  "WORLD_SIZE": str(self.processes)}
        started = []
        for rank in range(self.processes):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environ = {**common, **ranks} if self.processes > 1 else None
            started.append(self.context.Process(target=script, args=(
                self.name, list(argv), self.log, environ, self.collapse)))
            started[-1].start()
        return started

    def wait(self, started, code=0):
        for process in started:
            process.join(600)
        codes = [process.exitcode for process in started]
        assert codes == [code] * len(started), (codes, Path(self.log).read_text()[-3000:])

    def run(self, *argv):
        self.wait(self.start(*argv))


def kill(started):
    """SIGKILL the processes; whether it ended any that had not ended by itself."""
    for process in started:
        process.kill()
    for process in started:
        process.join()
    return any(process.exitcode == -signal.SIGKILL for process in started)


def until(happened, process=None, seconds=600):
    """Wait until happened() is true, or the process has ended; what happened() returned."""
    end = time.monotonic() + seconds
    while not (seen := happened()) and (process is None or process.exitcode is None):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)
    return seen


def results(run):
    """What a run must not depend on how often it was killed: (weights, log, kept ids)."""
    with open(run / "log.csv") as file:
        log = [{name: value for name, value in row.items() if name not in
                ("seconds", "images_per_second", "segment")} for row in csv.DictReader(file)]
    kept = None
    with contextlib.suppress(FileNotFoundError), np.load(run / "scores.npz") as file:
        kept = file["kept"].tolist(), file["scores"].tobytes()
    return (run / "model.safetensors").read_bytes(), log, kept
