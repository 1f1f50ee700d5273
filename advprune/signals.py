"""Ctrl-C while a script loads its imports, which takes seconds, or exits: no traceback.

Every script calls `die_of_interrupts` first; cli.script lets Ctrl-C raise KeyboardInterrupt in
between.
"""
import contextlib
import signal
import threading
from collections.abc import Iterator


def die_of_interrupts() -> None:
    """From now on Ctrl-C ends this process at once and without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored: nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_interrupts() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C within the block comes at its end; a thread other than the main one gets none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list = []
    handler = signal.signal(signal.SIGINT, lambda *args: came.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
