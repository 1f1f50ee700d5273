"""bfloat16 on every machine: torch.autocast, and what it lacks on a CPU without the instructions.

There PyTorch's convolutions in bfloat16 take many times those in float32. A product of two
bfloat16 numbers is exact in float32, so float32 instructions and one rounding of the sum give what
bfloat16 instructions give, but for the order of sums.
"""
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

PRODUCTS = {F.conv2d, F.linear}  # where a network spends its time


@cache
def has_bf16(device: torch.device) -> bool:
    """Whether it multiplies bfloat16 in hardware; of a CPU, as far as torch or Linux can tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        return True
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


class Rounded(TorchFunctionMode):
    """Products of bfloat16 numbers by float32 instructions, wherever autocast is on."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(Tensor, lambda t: t.bfloat16().float(), (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).bfloat16()


class Autocast(torch.autocast):
    """torch.autocast to bfloat16 on this device, if `precision` is "bf16"; else it does nothing.

    It may be entered again and again.
    """

    def __init__(self, device: torch.device, precision: str) -> None:
        super().__init__(device.type, torch.bfloat16, precision == "bf16")
        lacks = precision == "bf16" and device.type == "cpu" and not has_bf16(device)
        self.rounded = Rounded() if lacks else nullcontext()

    def __enter__(self) -> Any:
        self.rounded.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> Any:
        self.rounded.__exit__(*raised)
        return super().__exit__(*raised)
