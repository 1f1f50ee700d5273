"""A run of train.py: its directory, what it prints, and the state to continue from.

A run is a directory that describes itself and is never overwritten:
    config.json         command, settings, checksums of the data, network, commit, versions, device
    network.py          the source of the network, if --model names a file; score.py and
                        rule.py, if --score and --prune do
    first/              the run of --score-model first: the same, of its own training
    log.csv             one row for each epoch
    scores.npz          scores, labels and kept ids, if it pruned; pruned.png shows them. With
                        --every those of the last time, and scores-EPOCH.npz of each
    model.safetensors   the final weights
    train.json          the record that train.py prints; eval-*.json are evaluate.py's
    state.pt            what the run continues from, with its checksum; state.previous.pt is the
                        one before, in case the newest is damaged
    .lock               held by the process that writes here, and released when that ends
"""
import contextlib
import dataclasses
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from tqdm import tqdm

from advprune import checkpoint, console, distributed, files, models, ops, own_code
from advprune.config import AUTO, Settings, shown_p
from advprune.errors import UserError, first_line

CHECKOUT = Path(__file__).resolve().parent.parent
FORMAT = 4  # of config.json and state.pt; a run of another one is refused
STATES = ("state.pt", "state.previous.pt")  # the newest, and the one before


# --- what a directory holds


def read_config(folder: str | Path) -> dict:
    """The config.json of a run. Raises UserError if it is none, damaged, or of another version.
    """
    try:
        content = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        version = content.get("format")
    except (OSError, ValueError, AttributeError):
        raise UserError(f"{folder} is no run of train.py: it has no readable config.json"
                        ) from None
    if version != FORMAT:
        raise UserError(f"{folder} was written by another version of advprune, which can read it; "
                        "this one cannot")
    try:
        settings: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                                    for name, value in content["settings"].items()}
        content["settings"] = Settings(**settings)
        content["network"]["name"], content["data_dir"], content["cache_dir"]
        for part in ("data", "own", "open"):
            content[part] = {**content[part]}
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{folder}/config.json is damaged; put back the file that was written"
                        ) from None
    return content


def record(folder: str | Path) -> dict:
    """The train.json of a run; empty without one. Raises UserError if it is damaged."""
    try:
        return read_record(Path(folder) / "train.json")
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


def doubt_scores(folder: str | Path, p: float | str) -> None:
    """Say it if the run, whose network is to give scores and with --p auto p, is unfit for it."""
    if record(folder).get("collapsed"):
        distributed.say(f"{console.script()}: {folder} collapsed, so its scores say little: the "
                        "network withstands no attack; train it with --recipe robust")
    if p == AUTO and read_config(folder)["settings"].attack != "none":
        distributed.say(f"{console.script()}: {folder} was trained under attack, so hard examples "
                        "look wrong to it too; for --p auto train a network with --attack none")


def finished(path: Path, asked: dict, left: tuple[str, ...] | None = None) -> dict:
    """The record in the JSON file `path` of a command that has ended; {} before it has.

    asked: what the record says if it is of this command. left: patterns of what this command
    leaves in the folder if it is cut off; None if the folder may hold anything. Raises
    UserError if the record is damaged or of another command, or if other files are there.
    """
    output = path if left is None else path.parent
    if path.exists() or path.is_symlink():
        record = read_record(path)
        if all(record.get(name) == value for name, value in asked.items()):
            if distributed.rank() == 0:
                print(f"{output} is finished", file=sys.stderr)
            return record
    elif left is None or not output.exists() or (output.is_dir() and all(
            any(map(file.match, left)) for file in output.iterdir())):
        return {}
    raise UserError(f"{output} exists already and is not of this command; give another --out, "
                    "nothing is overwritten")


def write_scores(path: str | Path, scores: Tensor, labels: Tensor, kept: Tensor, kind: str,
                 weights: Tensor | None = None) -> None:
    """Write scores, labels, kept ids and the scores' kind (pruning.kind_name) as an npz.

    With weights [N] those too; examples that are not kept have 0.
    """
    arrays = dict(scores=scores, labels=labels, kept=kept)
    if weights is not None:
        arrays["weights"] = weights
    files.write_npz(path, kind=np.array(kind),
                    **{name: value.cpu().numpy() for name, value in arrays.items()})


def read_scores(path: str | Path, labels: Tensor, kind: str | None = None) -> tuple[Tensor, str]:
    """(scores [N], kind) that `write_scores` wrote, for a training set of these labels [N].

    If a kind is asked for, they must be of that kind; a file that names no kind is accepted.
    Raises UserError if they are of other labels or of another kind, or not finite.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            scores, its_labels = file["scores"], file["labels"]
            its_kind = str(file["kind"]) if "kind" in file else kind or "given"
    except Exception as error:  # numpy and zipfile raise half a dozen kinds
        raise UserError(f"{path} is not a score file of prune.py: {error}") from None
    if kind and its_kind != kind:
        raise UserError(f"{path} holds scores of kind {its_kind}, but {kind} is needed")
    if scores.shape != tuple(labels.shape):
        raise UserError(f"{path} scores {scores.size} examples, "
                        f"but the training set has {len(labels)}")
    if not np.array_equal(its_labels, labels.cpu().numpy()):
        raise UserError(f"{path} belongs to another training set: its labels differ")
    if bad := int((~np.isfinite(scores)).sum()):
        raise UserError(f"{bad} of the {len(scores)} scores in {path} are not finite")
    return torch.as_tensor(scores, dtype=torch.float32, device=labels.device), its_kind


def _git(*words):
    """What git prints, without the last line end; None if it fails, or is not there."""
    try:
        done = subprocess.run(["git", *words], cwd=CHECKOUT, capture_output=True, text=True)
    except OSError:
        return None
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
        "processes": distributed.world(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# --- a run in progress


WORTH_SAYING = 100  # seconds that are left


class Bar(tqdm):
    """The bar of a training's images. A line also says, once, about how long the run will take.

    That is after the first epoch (say_left); before, if two batches in a row take longer than a
    second. said: whether the user knows it already.
    """

    def __init__(self, said: bool = False, **how: Any) -> None:
        self.done, self.ended = how["initial"], math.inf
        self.said = said or distributed.rank() > 0
        self.seconds = 0.0  # of the last batch; the first, which takes longer, does not count
        super().__init__(**how)

    def update(self, images: float = 1) -> None:
        """A batch of so many images is done."""
        super().update(images)
        now = time.monotonic()
        before, self.seconds, self.ended = self.seconds, now - self.ended, now
        self.done += images
        if min(before, self.seconds) > 1:
            self.say_left(self.seconds / images)

    def say_left(self, seconds: float) -> None:
        """Say how long the rest takes, at so many seconds an image, unless it was said."""
        left = seconds * (self.total - self.done)
        if not self.said and left > WORTH_SAYING:
            tqdm.write(f"train.py: about {console.duration(left)} left", file=sys.stderr)
        self.said = True


class Run:
    """A run of these settings, within `with`. Process 0 holds its lock and writes into it.

    settings None: those of the run at `folder`, which must exist. folder None: a new one below
    runs/ that names itself. If the folder is a run of the same settings, `record` has what it
    wrote if it is finished, and `state` what it continues from. Raises UserError if the folder
    is another run, or something else, or is in use.
    """

    def __init__(self, settings: Settings | None, folder: str | Path | None = None) -> None:
        self.named = folder is not None
        self.folder = Path(folder or "runs")  # one that is not named gets its name in `begin`
        self.config: dict = {}
        if self.named and (settings is None or self._exists()):
            self.config = read_config(self.folder)
            self._compare(settings)
            settings = self.config["settings"]
        assert settings  # without any there is a folder
        self.settings = settings
        self.record = record(self.folder) if self.config else {}
        self.first = distributed.rank() == 0

    def _exists(self):
        """Whether a run is in the folder; False too if it ended before it wrote anything."""
        if (self.folder / "config.json").exists():
            return True
        if self.folder.is_symlink() or (self.folder.exists() and not (
                self.folder.is_dir() and set(os.listdir(self.folder)) <= BEFORE_CONFIG)):
            raise UserError(f"{self.folder} exists already and is no run of train.py; give "
                            "another --out, nothing is overwritten")
        return False

    def _compare(self, settings):
        if settings is None:
            return
        theirs = dataclasses.replace(self.config["settings"], **self.config["open"])
        other = [field.name for field in dataclasses.fields(settings)
                 if getattr(settings, field.name) != getattr(theirs, field.name)]
        if other:
            raise UserError(f"{self.folder} exists already and is a run with other settings "
                            f"({', '.join(other)} differ); give another --out, nothing is "
                            "overwritten")

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as entered:
            entered.enter_context(console.if_interrupted(self._advice))
            if self.config and not self.record:
                self._lock(entered)
                self.record = record(self.folder)  # it may have ended a moment ago
            self.held = entered.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.held.__exit__(*raised)

    def _lock(self, held):
        if self.first:
            held.enter_context(files.locked(self.folder / ".lock", f"the run {self.folder}"))

    def _advice(self):
        if not (self.folder / "config.json").exists():
            return "nothing was written yet"
        command = console.command("train.py", ["--resume", str(self.folder)])
        if distributed.world() > 1:
            torchrun = f"torchrun --nproc-per-node {distributed.world()} --"
            command = command.replace("python", torchrun, 1)
        return f"{command} continues the run"

    def state(self, device: torch.device) -> dict | None:
        """The state to continue from; None if no epoch has ended yet.

        Raises UserError if it is damaged and the one before too.
        """
        damage = None
        for name in STATES if self.config else ():
            file = checkpoint.State(self.folder / name)
            try:
                state = file.load(device)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                damage = f"{file.path} is damaged ({error})"
                continue
            if damage and self.first:
                print(f"{damage}; {name}, an epoch older, is used instead", file=sys.stderr)
            return state
        if damage:
            raise UserError(f"{damage}, and there is no older one; start the run afresh, with "
                            "another --out")
        return None

    def begin(self, training: Any, network: dict, codes: dict[str, str], about: dict) -> None:
        """Make the directory of a new run.

        network: what models.build took. codes: the source of the user's own code, by flag. about:
        the command, and where the data lie.
        """
        self.printed = len(training.rows)
        self.segment = training.rows[-1]["segment"] + 1 if training.rows else 1
        asked = self.settings
        if not self.config:
            self.settings = training.settings
        if not self.first:
            return
        if not self.config:
            self._try_saving(training)
            self._make()
            for flag, code in codes.items():
                files.write(self.folder / own_code.COPIES[flag], code)
            files.write_json(self.folder / "config.json", {
                "format": FORMAT, **about, "settings": dataclasses.asdict(self.settings),
                "open": {name: value for name, value in dataclasses.asdict(asked).items()
                         if value != getattr(self.settings, name)},  # before they followed
                "data": {part: training.dataset.checksum(part) for part in ("train", "test")},
                "network": network, "own": {
                    flag: {"name": getattr(self.settings, flag), "sha256": own_code.digest(code)}
                    for flag, code in codes.items() if flag != "model"},
                "kernels": ops.KERNELS,
                "layout": "channels-last" if training.channels_last else "contiguous",
                **environment(training.device)})
            if minutes := self.settings.minutes:
                print(f"train.py: {self.settings.epochs} epochs fit into {minutes:g} minutes",
                      file=sys.stderr)

    def head(self) -> None:
        """Print the head of the table."""
        if self.first:
            tqdm.write("epoch        lr  examples    loss  accuracy  robust   clean  seconds  "
                       "images/s")

    def _try_saving(self, training):
        """Raise UserError if what is trained could not be written and read again."""
        try:
            if training.observer:
                checkpoint.loaded(checkpoint.saved(vars(training.observer)))
        except Exception:  # of torch's pickle
            raise UserError(f"--score {own_code.short(self.settings.score)} keeps what cannot be "
                            "saved; its attributes may be tensors, numbers, strings, and lists "
                            "and dicts of them; no numpy arrays") from None
        try:
            saved_weights(training.result)
            training.restore(checkpoint.loaded(checkpoint.saved(training.state()),
                                               training.device))
        except Exception as error:  # of torch, safetensors, or the network's own code
            raise UserError(f"{self.settings.model} cannot be saved ({first_line(error)}); its "
                            "state_dict() may hold tensors alone, none expanded, and no "
                            "complex128") from None

    def _make(self):
        """Make and lock the directory: the one that was named, or the first free of runs/NAME."""
        if self.named:
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            self.folder = new_folder(f"runs/{self._name()}")
        self._lock(self.held)
        if (self.folder / "config.json").exists():
            raise UserError(f"{self.folder} was begun by another process meanwhile; give the same "
                            "command again")

    def _name(self):
        a = self.settings
        how = "trades" if a.loss == "trades" else a.attack
        rule = own_code.short(a.prune).replace(".py:", "-")
        pruned = f"-{rule}-p{shown_p(a.p)}-e{a.epoch}" if a.prune != "none" else ""
        return f"{a.dataset}-{how}{pruned}-s{a.seed}"

    def pruned(self, training: Any, epoch: int, scores: Tensor, kind: str, doubts: list[str]
               ) -> None:
        """Write scores.npz and, the last time, pruned.png; say how many examples are kept.

        doubts: what speaks against this pruning.
        """
        if not self.first:
            return
        a, dataset, kept = self.settings, training.dataset, training.kept
        rule, start = own_code.short(a.prune), time.perf_counter()
        for name in ("scores", f"scores-{epoch}")[:2 if a.every else 1]:
            write_scores(self.folder / f"{name}.npz", scores, dataset.labels, kept, kind,
                         training.weights)
        if not a.prunes_from(epoch + 1):
            self._draw(training, scores, kind, f"{a.dataset}: {rule} by {kind}, "
                       f"p = {training.p:g}, epoch {epoch}")
        own = training.score_model is training.result and not a.scores
        if training.guard.collapsed and own and kind not in ("random", "clean-loss"):
            doubts = [*doubts, "these scores say little, because the network has collapsed: it "
                      "withstands no attack"]
        for doubt in doubts:
            tqdm.write(f"train.py: {doubt}", file=sys.stderr)
        training.seconds["draw"] += time.perf_counter() - start
        tqdm.write(f"{rule} pruning kept {len(kept):,} of {len(scores):,} "
                   "({prune:.1f} s, and {draw:.1f} s to draw)".format(**training.seconds))
        if budgets := training.budget_statistics():
            tqdm.write("budgets of the kept examples: mean {mean_eps:.4g}; {adapted:.1%} are "
                       "below {full:.4g}".format(full=a.epsilon, **budgets))

    def _draw(self, training, scores, kind, title):
        """Draw what was dropped; with --every, say how many examples were ever trained on."""
        from advprune import plots  # here, because matplotlib's import takes a second

        seen = training.seen.index_fill(0, training.kept, True)
        if self.settings.every:
            title += f"; trained on so far, or now: {int(seen.sum()):,} of {len(seen):,}"
        files.write_figure(self.folder / "pruned.png", plots.pruned(
            training.dataset, scores, training.kept,
            lambda images: models.predict(training.score_model, images), title))

    def epoch(self, training: Any, collapsed: str | None) -> None:
        """Print the newest row and what the guard says; write log.csv and the state."""
        if not self.first:
            return
        if collapsed:
            tqdm.write(f"train.py: {collapsed}", file=sys.stderr)
        if not training.rows:  # rolled back to the start
            return
        row = training.rows[-1]
        row.setdefault("segment", self.segment)
        if not collapsed or row["epoch"] > self.printed:
            checked = {name: "" if row[name] is None else f"{row[name]:.3f}"
                       for name in ("robust", "clean")}
            tqdm.write("{epoch:5d}  {lr:8.2g}  {examples:8,d}  {loss:6.3f}  {accuracy:8.4f}  "
                       "{robust:>6}  {clean:>6}  {seconds:7.1f}  {images_per_second:8,.0f}"
                       .format(**{**row, **checked}))
            self.printed = row["epoch"]
        files.write_csv(self.folder / "log.csv", training.rows)
        newest, previous = (self.folder / name for name in STATES)
        if newest.exists():
            os.replace(newest, previous)
        checkpoint.State(newest).write(training.state())

    def finish(self, training: Any, record: dict) -> dict:
        """Write the weights and the record; returns the record, with what only the run knows."""
        if not self.first:
            return record
        segments = itertools.groupby(training.rows, key=lambda row: row["segment"])
        seconds = [sum(row["seconds"] for row in rows) for _, rows in segments]
        record = {"run": str(self.folder), **record, "segment_seconds": seconds}
        labels = training.dataset.test_labels
        files.write(self.folder / "model.safetensors", saved_weights(training.result))
        files.write_json(self.folder / "train.json", record)
        if at_chance(record["clean_accuracy"], labels, len(record["classes"])):
            print(f"train.py: clean accuracy {record['clean_accuracy']:.4f} is about that of "
                  f"guessing among {len(record['classes'])} classes; try more --epochs or "
                  "examples, or another --lr", file=sys.stderr)
        if undefended := training.guard.undefended(training.rows[-1]):
            print(f"train.py: {undefended}", file=sys.stderr)
        self.say(record)
        return record

    def say(self, record: dict) -> None:
        if self.first:
            print("clean accuracy {clean_accuracy:.4f}; trained in {0:.1f} s (guard "
                  "{guard_seconds:.1f} s), pruned in {prune_seconds:.1f} s: {run}".format(
                      record["train_seconds"] + record["guard_seconds"], **record))


def saved_weights(model: nn.Module) -> bytes:
    """The model's weights as safetensors. A tensor of two names is written under each."""
    return safetensors.torch.save({
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()})


def new_folder(name: str) -> Path:
    """Make the first free folder of NAME, NAME-2, NAME-3, ..."""
    for count in itertools.count(1):
        path = Path(f"{name}-{count}" if count > 1 else name)
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
    raise AssertionError("itertools.count has no end")


BEFORE_CONFIG = {".lock", ".config.json.part", *own_code.COPIES.values(),
                 *(f".{name}.part" for name in own_code.COPIES.values())}


def at_chance(accuracy: float, labels: Tensor, classes: int, judged: int | None = None) -> bool:
    """Whether this accuracy on these labels, or on so many of them, is about that of guessing."""
    share = torch.bincount(labels).max().item() / len(labels)  # 1 / classes, or more
    deviation = (share * (1 - share) / (judged or len(labels))) ** 0.5
    return share < 1 and accuracy <= max(share + 2 * deviation, 1.5 / classes)
