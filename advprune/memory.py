"""Memory of the CPU that is used again, and batches that do not fit into memory."""
import ctypes
import platform
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> None:
    """From now on freed memory stays with this process, where the C library is glibc.

    A step of training frees what the next one needs. By default glibc returns large tensors to the
    system, which then has to clear all their pages again (docs/speed.md).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # or large tensors are mapped, and unmapped when freed
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def exhausted(error: BaseException) -> bool:
    """Whether torch raised this error because memory, of a GPU or of the machine, ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error))


def halved(size: int, error: RuntimeError | MemoryError) -> int:
    """Half of a batch size that did not fit. Raises the error again where that is not the reason.

    Only where batches do not influence one another may a caller go on with smaller ones.
    """
    if size == 1 or not exhausted(error):
        raise error
    print(f"{size} images at a time do not fit into memory; trying {size // 2}", file=sys.stderr)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2
