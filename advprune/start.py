"""Every script imports this first: a package that is not installed is a sentence, no traceback."""
import sys
import time

BEGAN = time.monotonic()  # when the script began


def _say_what_is_missing(kind, error, trace):
    """sys.excepthook; exits with 2 if a package is not installed."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"{error.name.partition('.')[0]} is not installed in this Python; use .venv/bin/python "
          "after `make .venv/.ready`, or install what is needed by `pip install .`",
          file=sys.stderr)
    sys.exit(2)


sys.excepthook = _say_what_is_missing
