"""The processes of a run: one, or as many as torchrun started."""
import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

CONNECT, ANSWER, DECODE = timedelta(minutes=1), timedelta(minutes=10), timedelta(days=1)


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process, from 0. Process 0 prints and writes."""
    return int(os.environ.get("RANK", 0))


def join(device: torch.device) -> None:
    """Enter torchrun's process group, if torchrun started this process.

    Raises ConnectionError where the processes do not find one another within a minute.
    """
    if world() == 1 or dist.is_initialized():
        return
    try:
        store, *numbers = next(rendezvous("env://", timeout=CONNECT))
        # After a restart the store still has the addresses of the processes that died.
        attempt = dist.PrefixStore(f"attempt {_attempt()}", store)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=attempt,
                                rank=numbers[0], world_size=numbers[1], timeout=CONNECT)
        dist.barrier()
        # Connecting takes seconds; but a process may wait longer for one that writes or draws.
        getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)(ANSWER)
    except (RuntimeError, ValueError) as error:  # DistNetworkError, DistStoreError, ...
        raise ConnectionError(f"process {rank()} of {world()} did not reach the others within a "
                              f"minute ({str(error).partition(chr(10))[0]})") from None


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let process 0 run this block before the others, so that they can read what it writes.

    They wait for it up to a day: to decode a large folder takes long.
    """
    if world() == 1:
        yield
        return
    patient: Any = dist.new_group(timeout=DECODE, backend="gloo")
    if rank() > 0:
        dist.barrier(patient)
    yield
    if rank() == 0:
        dist.barrier(patient)


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of this tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(value: Any) -> Any:
    """Process 0's value, in every process."""
    if world() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def launch() -> str | None:
    """A name for this start of torchrun, the same after it has restarted its processes.

    It is torchrun's own process: its number and when it began. None without torchrun.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    parent = os.getppid()
    try:  # the 22nd field, counted after the name, which may hold anything but is in brackets
        began = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = "?"
    return f"{parent}-{began}"


def restarted() -> bool:
    """Whether torchrun started these processes again after one of them died."""
    return _attempt() > 0


def _attempt():
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
