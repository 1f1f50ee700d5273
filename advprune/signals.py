"""Ctrl-C while a script loads its imports, which takes seconds, or exits: no traceback.

Every script calls `die_of_interrupts` first; cli.script lets Ctrl-C raise KeyboardInterrupt in
between.
"""
import signal


def die_of_interrupts() -> None:
    """From now on Ctrl-C ends this process at once and without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored: nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_interrupts() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
