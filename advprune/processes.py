"""The processes of a run: one, or as many as torchrun started."""
import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0. Process 0 prints and writes."""
    return int(os.environ.get("RANK", 0))


def join(device: torch.device) -> None:
    """Enter torchrun's process group, if torchrun started this process."""
    if world() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                             timeout=timedelta(days=1))  # see below


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 run this block before the others, which then find what it has written.

    Decoding a large folder can take hours, so the group's timeout is a day.
    """
    if rank() > 0:
        torch.distributed.barrier()
    yield
    if world() > 1 and rank() == 0:
        torch.distributed.barrier()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of this tensor over all processes, in place."""
    if world() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor
