"""Batches that do not fit into memory."""
import contextlib
import sys
from collections.abc import Iterator

import torch

from advprune.cli import UserError


def exhausted(error: BaseException) -> bool:
    """Whether torch raised this error because memory, of a GPU or of the machine, ran out."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error))


def halved(size: int, error: RuntimeError | MemoryError) -> int:
    """Half of a batch size that did not fit. Raises the error again where that is not the reason.

    Raises UserError where not even one image fits.
    Only where batches do not influence one another may a caller go on with smaller ones.
    """
    if not exhausted(error):
        raise error
    if size == 1:
        raise UserError("a single image does not fit into memory beside the network; free some, "
                        "or take a smaller network") from None
    print(f"{size} images at a time do not fit into memory; trying {size // 2}", file=sys.stderr)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size // 2


@contextlib.contextmanager
def enough(otherwise: str) -> Iterator[None]:
    """Raise UserError where the block runs out of memory, and say what to do otherwise."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not exhausted(error):
            raise
        raise UserError(f"an update does not fit into memory; {otherwise}") from None
