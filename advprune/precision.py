"""--precision: float32, TF32, or bfloat16 by autocast."""
import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from advprune.errors import UserError


def check(precision: str, device: torch.device) -> None:
    if precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 needs a CUDA GPU; use fp32 or bf16 here")


def tf32(on: bool) -> None:
    """Let this process round float32 to TF32 on a GPU, or not. PyTorch's convolutions do so."""
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on


def autocast(precision: str, device: torch.device) -> torch.autocast | TorchFunctionMode:
    """The context in which a network trains and scores; TF32 is set for the whole process."""
    tf32(precision == "tf32")
    if precision == "bf16" and device.type == "cpu" and not has_bf16():
        return Rounded()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """The block computes in float32, whatever the training's precision.

    It is for attacks whose batch shrinks at each step: cuDNN would time its ways for each size.
    """
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    before = cudnn.allow_tf32, cudnn.benchmark
    tf32(False)
    cudnn.benchmark = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        cudnn.allow_tf32, cudnn.benchmark = before


@cache
def has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware, as far as Linux can tell."""
    cpu = Path("/proc/cpuinfo")
    words = set(cpu.read_text().split()) if cpu.exists() else set()
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


class Rounded(TorchFunctionMode):
    """Autocast to bfloat16 for a CPU without its instructions.

    Inputs and outputs of convolutions and linear layers are bfloat16, and so are their gradients;
    products are summed in float32, as those instructions do. PyTorch's own way there takes many
    times as long, and it rounds the sums of gradients on the way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.autocast = torch.autocast("cpu", torch.bfloat16)

    def __enter__(self) -> "Rounded":
        self.autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.autocast.__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func not in (F.conv2d, F.linear):
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*map(rounded, args),
                        **{name: rounded(x) for name, x in (kwargs or {}).items()}).bfloat16()


def rounded(x: object) -> object:
    """A tensor to bfloat16 and back, also on the way of its gradient."""
    return x.bfloat16().float() if isinstance(x, Tensor) else x
