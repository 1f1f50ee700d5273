"""Run directories, and files that appear whole or not at all.

A run is a directory that describes itself and is never overwritten:
    config.json         command, settings, commit, versions, device
    network.py          the source of the network, where --model names a file
    log.csv             one row for each epoch
    scores.npz          scores, labels and kept ids, if it pruned; pruned.png shows them
    model.safetensors   the final weights
    train.json          the record that train.py prints; eval-*.json are evaluate.py's
    state.pt            what `train.py --resume` needs
"""
import contextlib
import csv
import io
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from advprune import processes
from advprune.cli import UserError

CHECKOUT = Path(__file__).resolve().parent.parent


# --- files


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into. It appears at `path` whole at the end of the block, or not at all."""
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


def write(path: str | Path, content: bytes | str) -> None:
    """Write bytes or text; the file appears whole or not at all."""
    with writing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, record: dict) -> None:
    write(path, json.dumps(record, indent=1) + "\n")


def write_csv(path: str | Path, rows: list[dict]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue())


def write_saved(path: str | Path, save: Callable[[Any, IO[bytes]], Any], content: Any) -> None:
    """Write what `save(content, file)` produces, as torch.save and np.savez do."""
    buffer = io.BytesIO()
    save(content, buffer)
    write(path, buffer.getvalue())


def write_figure(path: str | Path, figure: Any) -> None:
    write_saved(path, lambda content, file: content.savefig(file, format="png"), figure)


# --- run directories


def create(out: str | Path | None, default: str | None = None) -> Path:
    """Make the directory `out`, which must not exist, or the first free of runs/default, -2, ...

    Raises UserError where `out` exists or cannot be made.
    """
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


def refuse_existing(path: str | Path) -> None:
    if Path(path).exists():
        raise UserError(
            f"{path} exists already; move it or give another --out, nothing is overwritten"
        )


def config(run: str | Path) -> dict:
    """The config.json of a run directory."""
    path = Path(run) / "config.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise UserError(f"{run} is no run of train.py: it has no readable config.json") from None


def checkpoint(run: str | Path, device: torch.device) -> dict:
    """What `train.py --resume` needs of an interrupted run. Raises UserError for any other."""
    run = Path(run)
    if (run / "train.json").exists():
        raise UserError(f"{run} is finished; evaluate it: python evaluate.py {run}")
    if not (run / "state.pt").exists():
        raise UserError(f"{run} ended within its first epoch; start it afresh")
    return torch.load(run / "state.pt", map_location=device, weights_only=True)


def environment(device: torch.device) -> dict:
    """What a record needs so that its numbers can be judged later."""
    commit = None
    if (CHECKOUT / ".git").exists():  # an installed package may lie inside another repository
        git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"],
                             cwd=CHECKOUT, capture_output=True, text=True)
        commit = git.stdout.strip() or None
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
