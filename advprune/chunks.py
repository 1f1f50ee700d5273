"""A network at the speed of the CPU's caches: in channels-last, and in parts of a batch.

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

    def __init__(self, model: nn.Module, size: int = 0, channels_last: bool = False) -> None:
        super().__init__()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model, self.size, self.layout = model.to(memory_format=layout), size, layout

    def forward(self, x: Tensor) -> Tensor:
        """The logits [B, K] of x [B, C, H, W]."""
        parts = [self.model(part.contiguous(memory_format=self.layout))
                 for part in x.split(self.size or max(1, len(x)))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def fastest(model: nn.Module, x: Tensor) -> Chunks:
    """The Chunks of `model` that classifies and differentiates images x [B, C, H, W] fastest.

    The sizes up to B are measured for some milliseconds each, or for one pass of a slow network. A
    network that does not work in channels-last, such as one with `view` behind a convolution,
    stays in the layout that it has. On a GPU every batch stays whole.
    """
    if x.device.type != "cpu":
        return Chunks(model)
    channels_last, rates = _works_in_channels_last(model, x[:2]), {}
    for size in [*(size for size in SIZES if size < len(x)), len(x)]:
        try:
            rates[size] = size / _seconds(Chunks(model, size, channels_last), x[:size])
        except (RuntimeError, MemoryError) as error:
            if not memory.exhausted(error):
                raise
            break
    size = max(rates, key=rates.__getitem__, default=0)
    return Chunks(model, 0 if size == len(x) else size, channels_last)


def _works_in_channels_last(model, x):
    wanted, y = Chunks(model)(x), torch.zeros(len(x), dtype=torch.long)
    candidate = Chunks(model, channels_last=True)
    try:
        input_grad(candidate, x, y)
        return torch.allclose(candidate(x), wanted, rtol=1e-3, atol=1e-3)
    except Exception:  # each layer has its own kind
        return False


def _seconds(model, x):
    """The least time of a forward and backward pass of x."""
    y, times = torch.zeros(len(x), dtype=torch.long), [torch.inf]
    end = time.perf_counter() + SECONDS
    while len(times) == 1 or time.perf_counter() < end:
        start = time.perf_counter()
        input_grad(model, x, y)
        times.append(time.perf_counter() - start)
    return min(times)
