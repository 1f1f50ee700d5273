"""Batches that do not fit into memory."""
import sys

import torch


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
