"""The clock of the benchmarks, and a process as others have it."""
import contextlib
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.workers import Workers


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def apart(work):
    """A call of `work`, a function of a module, in one process of its own.

    Our scripts keep freed memory (advprune/memory.py). That process does not, as other programs.
    """
    with tempfile.TemporaryDirectory() as folder, Workers(1, work) as workers:
        def call(*args):
            workers.start(work, Path(folder) / "log", *args)
            ((_, result),) = workers.finished()
            return result

        yield call


class Clock:
    """Adds up the seconds and the calls of each part of an epoch, and waits for the GPU.

    Within `with clock.part("guard")` no other part counts.
    """

    def __init__(self, device):
        self.device, self.seconds, self.calls, self.inside = device, Counter(), Counter(), None

    def start(self, name):
        """Begin a part; False if another one runs already."""
        if self.inside:
            return False
        sync(self.device)
        self.inside, self.began = name, time.perf_counter()
        return True

    def stop(self):
        sync(self.device)
        self.seconds[self.inside] += time.perf_counter() - self.began
        self.calls[self.inside] += 1
        self.inside = None

    @contextlib.contextmanager
    def part(self, name):
        """The block is this part, or belongs to the one that it lies in."""
        mine = self.start(name)
        yield
        if mine:
            self.stop()

    def timed(self, name, call):
        """The same function, whose calls are this part."""
        def wrapper(*args, **kwargs):
            with self.part(name):
                return call(*args, **kwargs)
        return wrapper
