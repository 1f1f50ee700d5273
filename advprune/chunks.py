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
SECONDS = 0.3  # of measurement; each size has one turn at least


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

    The sizes up to B take turns for a moment; of each the fastest turn counts. On a GPU every
    batch stays whole.
    """
    sizes = [*(size for size in SIZES if size < len(x)), len(x)]
    rates, end = dict.fromkeys(sizes, 0.0), time.perf_counter() + SECONDS
    while x.device.type == "cpu":
        for size in sizes:
            try:
                rates[size] = max(rates[size], size / _seconds(model, x[:size]))
            except (RuntimeError, MemoryError) as error:
                if not memory.exhausted(error):
                    raise
        if time.perf_counter() > end:
            break
    best = max(sizes, key=rates.__getitem__)
    return Chunks(model, best if best < len(x) and rates[best] else 0)


def _seconds(model, x):
    """The time of a pass without gradient, and one with that of the images."""
    y, start = torch.zeros(len(x), dtype=torch.long), time.perf_counter()
    with torch.no_grad():
        model(x)
    input_grad(model, x, y)
    return time.perf_counter() - start
