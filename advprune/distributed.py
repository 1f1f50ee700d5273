"""The processes of a run: one, or as many as torchrun started."""
import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

# Of the errors that gloo and NCCL raise if another process has ended.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "ncclRemoteError")
PATIENCE = timedelta(days=1)  # process 0 may decode a large folder while the others wait


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0. Process 0 prints and writes."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """The number of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world() -> int:
    """How many processes there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def lost(error: BaseException) -> bool:
    """Whether torch raised this error because another process of the group has ended."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in LOST)


def join(device: torch.device) -> None:
    """Enter torchrun's process group, if torchrun started this process."""
    if world() == 1 or dist.is_initialized():
        return
    store = next(rendezvous("env://", timeout=PATIENCE))[0]
    # After a restart torchrun's store still has the addresses of the processes that died.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE,
                            store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank(),
                            world_size=world(),
                            device_id=device if device.type == "cuda" else None)


def leave() -> None:
    """Leave the process group at the end, if there is one; NCCL warns if nobody does."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 run this block before the others, so that they can read what it writes."""
    if world() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world() > 1 and rank() == 0:
        dist.barrier()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of this tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def of_first(value: float, device: torch.device) -> float:
    """Process 0's value, in every process."""
    mine = value if rank() == 0 else 0.0
    return total(torch.tensor(mine, dtype=torch.float64, device=device)).item()


def say(line: str) -> None:
    """Print this line on stderr, once for all processes."""
    if rank() == 0:
        print(line, file=sys.stderr)
