"""What the scripts share: manners of the command line, run directories, whole files, processes.

A run is a directory that describes itself and is never overwritten:
    config.json         command, resolved settings, commit, versions, device
    log.csv             one row an epoch
    scores.npz          scores, labels and kept ids, if it pruned; pruned.png shows them
    model.safetensors   the final weights
    train.json          train.py's record; eval-*.json are evaluate.py's
    state.pt            what `train.py --resume` needs
"""
import argparse
import contextlib
import csv
import functools
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torchvision

HERE = Path(__file__).resolve().parent


class UserError(Exception):
    """Bad input: its one sentence goes to stderr, and the script exits with 2."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, lest `--epoch` mean `--epochs`, and with one-line errors."""

    def __init__(self, doc):
        super().__init__(description=doc, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}\n")


def script(main):
    """Make main(argv) a script: its dict is the last line on stdout, as JSON; bad use exits 2."""

    @functools.wraps(main)
    def run(argv=None):
        try:
            record = main(argv)
        except UserError as error:
            print(f"{Path(sys.modules[main.__module__].__file__).name}: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted; what was finished is kept", file=sys.stderr)
            sys.exit(130)
        if rank() == 0:
            print(json.dumps(record), flush=True)
        return record

    return run


# --- values of flags


def number(kind, low=None, high=None, open_low=False, open_high=False):
    """An argparse type: a number within bounds; fractions such as 8/255 are read for floats."""

    def parse(text):
        try:
            value = kind(text) if kind is int or "/" not in text else float(Fraction(text))
        except (ValueError, ZeroDivisionError):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not {'a whole' if kind is int else 'a'} number"
            ) from None
        low_ok = low is None or (value > low if open_low else value >= low)
        high_ok = high is None or (value < high if open_high else value <= high)
        if not (low_ok and high_ok and np.isfinite(value)):
            bounds = [f"{'above' if open_low else 'at least'} {low}"] * (low is not None)
            bounds += [f"{'below' if open_high else 'at most'} {high}"] * (high is not None)
            raise argparse.ArgumentTypeError(f"{text} must be {' and '.join(bounds) or 'finite'}")
        return value

    return parse


positive_int = number(int, 1)
fraction = number(float, 0, 1, open_high=True)
budget = number(float, 0, 1)
seed = number(int, 0, 2**63 - 1)


def device(name):
    """torch.device for a name such as `cpu`, `cuda` or `cuda:1`; the best one present for None."""
    try:
        chosen = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError):
        raise UserError(f"device {name!r} is not available here; try --device cpu") from None
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


# --- processes: one, or as many as torchrun started


def world():
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    return int(os.environ.get("RANK", 0))


def join_processes(device):
    """Enter torchrun's process group, if it started this process."""
    if world() > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                             timeout=timedelta(days=1))  # see below


@contextlib.contextmanager
def first_process_first():
    """Let process 0 through before the others: what it downloads or decodes is there for them.

    To decode a large folder takes hours, which torch's ten minutes would cut off.
    """
    if rank() > 0:
        torch.distributed.barrier()
    yield
    if world() > 1 and rank() == 0:
        torch.distributed.barrier()


def total(tensor):
    """The sum of a tensor over all processes."""
    if world() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


# --- files


@contextlib.contextmanager
def writing(path):
    """A file open to write, that appears at `path` whole at the end, or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path, content):
    """Write bytes or text so that the file appears whole or not at all."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path, record):
    write(path, json.dumps(record, indent=1) + "\n")


def write_csv(path, rows):
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue())


def write_saved(path, save, content):
    """Write what `save(content, file)` produces, as torch.save and np.savez do."""
    buffer = io.BytesIO()
    save(content, buffer)
    write(path, buffer.getvalue())


def write_figure(path, figure):
    write_saved(path, lambda content, file: content.savefig(file, format="png"), figure)


def create(out, default):
    """Make a directory: `out`, which must not exist, or the first free of runs/default, -2, ..."""
    count = 1
    while True:
        path = Path(out or f"runs/{default}" + (f"-{count}" if count > 1 else ""))
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if out:
                raise UserError(
                    f"{path} exists already; give another --out, nothing is overwritten"
                ) from None
            count += 1
        except OSError as error:
            raise UserError(f"cannot make the run directory {path}: {error.strerror}") from None


def refuse_existing(path):
    if Path(path).exists():
        raise UserError(
            f"{path} exists already; move it or give another --out, nothing is overwritten"
        )


def config(run):
    """The config.json of a run directory."""
    path = Path(run) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{run} is no run of train.py: it has no readable config.json") from None


def command(name, argv):
    """The command line to repeat this."""
    return shlex.join(["python", name, *(sys.argv[1:] if argv is None else argv)])


def environment(device):
    """What a record needs so that its figures can be judged later."""
    git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE,
                         capture_output=True, text=True)
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else platform.processor() or platform.machine())
    return {
        "commit": git.stdout.strip() or None,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": torchvision.__version__, "numpy": np.__version__},
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "processes": world(),
    }
