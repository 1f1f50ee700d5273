"""Memory of the CPU that is used again, and batches that do not fit into memory."""
import ctypes
import platform
import sys
from collections.abc import Callable

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
EXHAUSTED = ("DefaultCPUAllocator", "not enough memory", "CUDA error: out of memory",
             "CUBLAS_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED")  # the last one is cuDNN's


def keep_freed() -> None:
    """From now on freed memory stays with this process, if the C library is glibc.

    A step of training frees what the next one needs. By default glibc returns large tensors to the
    system, which then has to clear all their pages again (docs/speed.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # or large tensors are mapped, and unmapped when freed
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def exhausted(error: BaseException) -> bool:
    """Whether torch raised this error because memory, of a GPU or of the machine, ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in EXHAUSTED)


def in_parts(work: Callable[[int, int], None], n: int, size: int, start: int = 0) -> None:
    """Call work(first, end) for items start to n - 1, at most `size` of them at a time.

    If a part does not fit into memory, it is done again in halves, and so is the rest. Only for
    work whose parts do not influence one another. Raises what `work` raises.
    """
    while start < n:
        end = min(n, start + size)
        try:
            work(start, end)
        except (RuntimeError, MemoryError) as error:
            if end - start == 1 or not exhausted(error):
                raise
            size = (end - start) // 2
            print(f"{end - start} images at a time do not fit into memory; trying {size}",
                  file=sys.stderr)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            start = end
