"""train.py --minutes: how many epochs of a run end within so many minutes on this machine.

A trial of the run, with a network of its own, is timed: a few updates, the scores of a batch, a
checkpoint. Then it is thrown away, so that the run is as one with --epochs. The guard and the
final evaluation are counted in passes through the network, a picture in seconds. The number is
chosen once, before the first epoch.
"""
import tempfile
import time
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from advprune import (
    checkpoint,
    config,
    console,
    data,
    distributed,
    guard,
    models,
    own_code,
    pruning,
)
from advprune.config import Settings
from advprune.errors import UserError

PLANNED = 0.95  # of the minutes; the rest is for what is not timed
TIMED = 0.02, 2.0  # updates are timed for this share of the minutes, and for so many seconds
DRAWN = 3.0  # seconds, for pruned.png
MOST = 100_000  # epochs


def epochs(begin: Callable[[Settings], Any], settings: Settings, folder: Path, began: float
           ) -> int:
    """The most epochs with which a run of these settings ends within its minutes.

    begin: makes a train.Training of settings. folder: where the run will be. began: when the
    minutes began, on the clock of time.monotonic. With several processes it is process 0's number.
    Raises UserError if the epochs that --epoch needs do not fit.
    """
    start, minutes = time.monotonic(), float(settings.minutes)  # type: ignore[arg-type]
    trial = begin(replace(settings, epochs=MOST, on_collapse="off"))
    built = time.monotonic() - start
    dataset, size = trial.dataset, trial.guard.size
    update, image = update_seconds(trial, max(60 * TIMED[0] * minutes, TIMED[1]))
    forward = image / settings.passes
    scoring, saving = score_seconds(trial), save_seconds(trial, folder)
    tested = len(dataset.test_labels) * distributed.world()  # each process tests on all

    def of_training(a):
        left = data.batch_sizes(dataset.pruned_size(a, unknown=0.0), a.batch_size, trial.smallest)
        trained = (a.epochs - a.pruned_epochs) * trial.updates + a.pruned_epochs * len(left)
        checked = len(guard.due(a, dataset, size)) * size * guard.CHECK
        return (update * trained * a.passes / settings.passes + forward * (checked + tested)
                + saving * a.epochs + scoring * sum(map(a.prunes, range(a.epochs)))
                + DRAWN * bool(a.pruned_epochs))

    def seconds(count):
        a = replace(trial.settings, epochs=count, on_collapse=settings.on_collapse)
        if own_code.is_file(a.prune):
            a = replace(a, p=0.0)  # such a rule may keep all
        first = config.first(a)
        judged = 2 * len(dataset.labels) * (settings.p == config.AUTO)  # pruning.wrong_share
        return of_training(a) + (of_training(first) if first else 0) + forward * judged

    left = 60 * PLANNED * minutes - built - (time.monotonic() - began)
    found = bisect(range(1, MOST + 1), left, key=seconds)
    found = round(distributed.of_first(found, trial.device))
    least = 1 + max(settings.epoch or 0, settings.until_epoch or 0)
    if found < least:
        one = console.duration(update * trial.updates)
        raise UserError(f"--minutes {minutes:g} is too short for {least} "
                        f"epoch{'s' * (least > 1)}, each of about {one} on this machine; give "
                        "more minutes, a --limit, a smaller --width or another --model")
    return found


def update_seconds(trial: Any, enough: float) -> tuple[float, float]:
    """Seconds of an update, and of an image, from `enough` seconds of updates or more.

    The first update is not timed, because it is slower. On a small set whole epochs are timed,
    with their smaller last batch.
    """
    a, ids, batches = trial.settings, data.shuffled(trial.kept, trial.settings.seed), 1
    share = len(ids) / trial.dataset.original  # --extra-data makes no epoch longer
    timed = trial.rows[1:]
    while not timed or distributed.of_first(_total(timed, "seconds"), trial.device) < enough:
        trial.kept = ids[:round(batches * a.batch_size * share)]
        trial.epoch(0, tqdm(disable=True))
        timed = trial.rows[1:]
        batches *= 1 + bool(timed)
    seconds = _total(timed, "seconds")
    return seconds / _total(timed, "updates"), seconds / _total(timed, "examples")


def _total(rows, name):
    return sum(row[name] for row in rows)


def score_seconds(trial: Any) -> float:
    """Seconds of scoring all examples, from the second of two batches; 0 if no network scores.

    The labels are what the network predicts: if it is wrong, DeepFool would have nothing to do.
    """
    a, dataset = trial.settings, trial.dataset
    if a.epoch is None or a.prune == "random" or trial.observer or trial.scores:
        return 0.0
    ids = torch.arange(len(dataset.labels))[:pruning.at_once(trial.device)]
    model, (precision, how) = trial.score_model, trial.scoring(0)
    images = dataset.images[ids]
    with precision:
        labels = models.predict(model, images).clamp(min=0)
        for _ in range(2):
            start = time.monotonic()
            pruning.score(model, images, labels, trial.scorer, **how)
    return (time.monotonic() - start) * len(dataset.labels) / len(ids)


def save_seconds(trial: Any, folder: Path) -> float:
    """Seconds of writing a checkpoint where the folder will be, which process 0 does."""
    if distributed.rank() > 0:
        return 0.0
    place = next(path for path in folder.resolve().parents if path.is_dir())
    with tempfile.TemporaryDirectory(prefix=".minutes-", dir=place) as temporary:
        start = time.monotonic()
        checkpoint.State(Path(temporary, "state")).write(trial.state())
        return time.monotonic() - start
