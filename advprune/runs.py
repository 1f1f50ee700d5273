"""Run directories.

A run is a directory that describes itself and is never overwritten:
    config.json         command, settings, commit, versions, device
    network.py          the source of the network, where --model names a file
    log.csv             one row for each epoch
    scores.npz          scores, labels and kept ids, if it pruned; pruned.png shows them
    model.safetensors   the final weights
    train.json          the record that train.py prints; eval-*.json are evaluate.py's
    state.pt            what `train.py --resume` needs, with its checksum; state.previous.pt is
                        the one before, in case the newest is damaged
    .lock               held by the process that writes here, and released when that ends
"""
import contextlib
import errno
import glob
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from advprune import files, locks, processes
from advprune.cli import UserError

CHECKOUT = Path(__file__).resolve().parent.parent


def check_output(path: str | Path) -> None:
    """Raise UserError unless a new file can be written at `path`."""
    path = Path(path)
    refuse_existing(path)
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    check_writable(path)


def check_folder(out: str | Path | None, default: str | None = None) -> None:
    """Raise UserError unless `create(out, default)` can make its folder, with its parents."""
    path = Path(out or f"runs/{default}")
    if not out:
        pass  # it finds a free name
    elif held := _abandoned(Path(path)):
        held.close()
    else:
        refuse_existing(path)
    check_below(path)


def check_below(path: str | Path) -> None:
    """Raise UserError unless `path` can be made or written, its absent parents included."""
    parent = Path(path).absolute().parent
    while not parent.exists() and not parent.is_symlink():
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{path} cannot be made: {parent} is no folder")
    check_writable(parent / "new", path)


def check_writable(path: Path, what: str | Path | None = None) -> None:
    """Raise UserError, which calls it `what`, unless `writing(path)` can begin."""
    path, what = Path(path), what or path
    part = locks.part(path)
    try:  # root may write where os.access says no, and not where the file system is read-only
        with open(part, "wb"):
            part.unlink()
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}") from None


FIRST = {".lock", "config.json", "network.py", "scores.npz", "pruned.png", "log.csv"}
CHECKPOINTS = ("state.pt", "state.previous.pt")  # the newest, and the one before


def create(out: str | Path | None, default: str | None = None) -> Path:
    """Make and lock the folder `out`, which must not exist, or the first free of runs/default, ...

    What is left of a run that ended before its first epoch did is deleted: it cannot be resumed.
    Raises UserError where `out` exists or cannot be made.
    """
    for count in itertools.count(1):
        path = Path(out or f"runs/{default}" + (f"-{count}" if count > 1 else ""))
        new = locks.part(path)
        try:
            if held := _abandoned(path):
                with held:
                    discard(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            locks.sweep(path.parent, glob.escape(path.name))
            if not (path.exists() or path.is_symlink()):
                new.mkdir(exist_ok=True)
                held = locks.take(new / ".lock")
                os.rename(new, path)  # so a run is locked from the moment that it exists
                locks.lock(path / ".lock", f"the run {path}", held)
                return path
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise UserError(
                    f"cannot make the run directory {path}: {error.strerror}") from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
        if out:
            raise UserError(f"{path} exists already; give another --out, nothing is overwritten")
    raise AssertionError("itertools.count has no end")


@contextlib.contextmanager
def new_folder(out: str | Path | None, default: str | None = None) -> Iterator[Path]:
    """The folder that `create` makes. It is deleted again where the block fails to fill it."""
    path = create(out, default)
    try:
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _abandoned(path):
    """The lock of a run that ended before its first epoch did, and that nobody works on."""
    try:
        names = set(os.listdir(path))
        if path.is_symlink() or not _in_first_epoch(names) or not (
                ".lock" in names or config(path)):
            return None
        return locks.take(path / ".lock")
    except (OSError, UserError):  # it does not exist, is no run, or is not ours to write
        return None


def _in_first_epoch(names):
    """Whether a folder of these files can be a run whose first epoch has not ended."""
    return all(name in FIRST or name.endswith(".part") or name.startswith("events.out.tfevents.")
               for name in names)


def discard(path: Path) -> None:
    """Delete a folder of a run, whose lock is ours, unless an epoch of it has ended."""
    if path.is_dir() and _in_first_epoch(os.listdir(path)):
        gone = locks.part(path)
        os.rename(path, gone)  # at once, whatever happens while its files are deleted
        shutil.rmtree(gone)


def resumable(run: Path) -> bool:
    """Whether a run has a checkpoint: an epoch of it has ended."""
    return any((run / name).exists() for name in CHECKPOINTS)


def of_launch(launch: str | None, out: str | None) -> Path | None:
    """The unfinished run that this start of torchrun has begun, where it has a checkpoint."""
    for path in [Path(out)] if out else sorted(Path("runs").glob("*")):
        try:
            mine = config(path).get("launch") == launch
        except UserError:
            continue
        if mine and resumable(path):
            return path
    return None


def refuse_existing(path: str | Path) -> None:
    if (Path(path).exists() or Path(path).is_symlink()):
        raise UserError(
            f"{path} exists already; move it or give another --out, nothing is overwritten"
        )


def config(run: str | Path) -> dict:
    """The config.json of a run directory. Raises UserError where it is none, or is damaged."""
    path = Path(run) / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        content["args"]["network"]["name"], content["args"]["dataset"]
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        raise UserError(f"{run} is no run of train.py: it has no readable config.json") from None
    return content


def record(run: str | Path) -> dict:
    """The train.json of a run; empty without one. Raises UserError where it is damaged."""
    try:
        return read_record(Path(run) / "train.json")
    except FileNotFoundError:
        return {}


def read_record(path: Path, *keys: str) -> dict:
    """The record in a JSON file. Raises UserError unless it has content, and these keys."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content or not all(key in content for key in keys):
        raise UserError(f"{path} is damaged; put back the file that was written, or delete it")
    return content


def save_checkpoint(run: Path, state: dict) -> None:
    """Write the state to resume from; the one before stays as state.previous.pt."""
    newest, previous = (run / name for name in CHECKPOINTS)
    if newest.exists():
        os.replace(newest, previous)
    files.write_state(newest, state)


def checkpoint(run: str | Path, device: torch.device) -> dict:
    """What `train.py --resume` needs of an interrupted run. Raises UserError for any other."""
    run = Path(run)
    if (run / "train.json").exists():
        raise UserError(f"{run} is finished; evaluate it: python evaluate.py {run}")
    damage = None
    for name in CHECKPOINTS:
        try:
            state = files.read_state(run / name, device)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            damage = f"{run / name} is damaged ({error})"
            continue
        if damage:
            print(f"{damage}; {name}, an epoch older, is used instead", file=sys.stderr)
        return state
    if damage:
        raise UserError(f"{damage}, and there is no older one; start the run afresh")
    raise UserError(f"{run} ended within its first epoch; start it afresh")


def _git(*words):
    """What git prints, without the last line end; None where it fails."""
    done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def environment(device: torch.device) -> dict:
    """What a record needs so that its numbers can be judged later."""
    commit = None
    if (CHECKOUT / ".git").exists():  # an installed package may lie inside another repository
        commit = _git("rev-parse", "--short=12", "HEAD")
        if commit and _git("status", "--porcelain", "-uno", "--", ".", ":!results", ":!figures"):
            commit += "-dirty"  # other records do not change what is measured
    name = (torch.cuda.get_device_name(device) if device.type == "cuda"
            else platform.processor() or platform.machine())
    return {
        "commit": commit,
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     **{package: _version(package) for package in ("torchvision", "numpy")}},
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "processes": processes.world(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
