"""A network at the speed of the CPU's caches: in parts of a batch.

An attack sees whole batches, so that its random numbers do not depend on this. The network sees
parts of them, whose activations stay in the caches. Its logits differ by rounding at most.
"""
import time

import torch
from torch import Tensor, nn

from advprune import memory
from advprune.attacks import input_grad

SIZES = (32, 64, 128, 256)  # images in a part
SECONDS = 0.01  # of measurement for each size, after a first pass


class Chunks(nn.Module):
    """`model` for batches of any size, which it takes in parts of `size` images (0: whole)."""

    def __init__(self, model: nn.Module, size: int = 0) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        """The logits [B, K] of x [B, C, H, W]."""
        if not 0 < self.size < len(x):
            return self.model(x)
        return torch.cat([self.model(part) for part in x.split(self.size)])


def fastest(model: nn.Module, x: Tensor) -> Chunks:
    """The Chunks of `model` that classifies and differentiates images x [B, C, H, W] fastest.

    The sizes up to B are measured for some milliseconds each, or for one pass of a slow network.
    On a GPU every batch stays whole.
    """
    if x.device.type != "cpu":
        return Chunks(model)
    rates: dict[int, float] = {}
    for size in [*(size for size in SIZES if size < len(x)), len(x)]:
        try:
            rates[size] = size / _seconds(model, x[:size])
        except (RuntimeError, MemoryError) as error:
            if not memory.exhausted(error):
                raise
            break
    size = max(rates, key=rates.__getitem__, default=0)
    return Chunks(model, 0 if size == len(x) else size)


def _seconds(model, x):
    """The least time of a forward and backward pass of x."""
    y, times = torch.zeros(len(x), dtype=torch.long), [torch.inf]
    end = time.perf_counter() + SECONDS
    while len(times) == 1 or time.perf_counter() < end:
        start = time.perf_counter()
        input_grad(model, x, y)
        times.append(time.perf_counter() - start)
    return min(times)
