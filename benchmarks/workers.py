"""Work that goes on side by side, in processes that end with the one that started them."""
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from advprune.errors import UserError


class Workers:
    """`count` processes that call `work(*args)`, a function of a module.

    Each has its share of the cores, but no more threads than this process. What they print goes
    to log files. At the end of the `with` block they are interrupted.
    """

    def __init__(self, count: int, work: Callable[..., Any]) -> None:
        cores = (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                 else os.cpu_count() or 1)
        threads = max(1, min(torch.get_num_threads(), cores // count))
        context = multiprocessing.get_context("spawn")  # a fork could inherit held locks of torch
        self.idle: list[tuple[Any, Any]] = []
        self.busy: dict[Any, tuple[Any, Any, Path]] = {}  # pipe -> process, key, log
        for _ in range(count):
            mine, other = context.Pipe()
            process = context.Process(target=_serve, args=(other, work, threads, os.getcwd()))
            process.start()
            other.close()  # so that the end of the process is the end of the pipe
            self.idle.append((process, mine))

    def start(self, key: Any, log: Path, *args: Any) -> None:
        """Begin work(*args) in an idle process. What it prints is added to the file `log`."""
        process, pipe = self.idle.pop()
        self.busy[pipe] = process, key, log
        pipe.send((str(log), args))

    def finished(self) -> list[tuple[Any, Any]]:
        """Wait for work that has been started: (key, its result) of each that is done.

        Raises UserError if a process failed.
        """
        done, pipes = [], connection.wait(list(self.busy))
        pipe: Any
        for pipe in pipes:
            process, key, log = self.busy[pipe]
            try:
                done.append((key, pipe.recv()))
            except EOFError:
                lines = log.read_text(errors="replace").split("\n") if log.exists() else []
                last = next((line for line in reversed(lines) if line.strip()), "it says nothing")
                raise UserError(f"a run failed, and {log} ends with: {last.strip()}") from None
            del self.busy[pipe]
            self.idle.append((process, pipe))
        return done

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        busy = [process for process, _, _ in self.busy.values()]
        for process in busy:
            if process.is_alive():
                os.kill(process.pid, signal.SIGINT)
        for pipe in [*self.busy, *(pipe for _, pipe in self.idle)]:
            pipe.close()  # which ends those that wait for work
        for process in [*busy, *(process for process, _ in self.idle)]:
            process.join(10)
            process.kill()
            process.join()


def _serve(pipe, work, threads, folder):
    """The body of a process."""
    os.setpgid(0, 0)  # Ctrl-C reaches the parent alone, which then interrupts this process once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.chdir(folder)
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            log, args = pipe.recv()
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            for number in (1, 2):
                os.dup2(file, number)
            os.close(file)
            pipe.send(work(*args))


def _end_with_parent():
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
