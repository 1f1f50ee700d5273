"""A guard against catastrophic overfitting, which single-step adversarial training can run into.

Within an epoch the network learns to withstand its own training step and nothing else: training
accuracy rises, and accuracy under PGD falls to 0 (Wong et al. 2020, section 5.4). So between
epochs PGD-10 attacks a fixed slice of the training examples: as often as a small share of the
training's cost pays for. The test set is not used, and the slice stays in training.
"""
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from advprune import attacks, config, data, distributed, memory, models, ops, pruning

STEPS = 10
CHECK = 2 * STEPS + 2  # passes of a check through the network, of one example
SHARE = 0.02  # of the training's passes; a pass of a check may take longer, so 3 % of its time
LEAST, MOST = 32, 512  # examples of the slice
DROP = 0.2  # between two checks, as in fast_adversarial's early stop


class Guard:
    """The slice of a run, what happened to the run so far, and the last state that was good."""

    def __init__(self, settings: config.Settings, dataset: data.Dataset) -> None:
        n = len(dataset.labels)
        epoch = dataset.pruned_size(settings, unknown=pruning.MOST_WRONG)
        # Fewer than a batch would not be faster on a GPU, and fewer than LEAST say too little.
        self.size = min(n, MOST, max(LEAST, settings.batch_size, epoch // 250))
        self.due = due(settings, dataset, self.size)
        ids = data.shuffled(torch.arange(n), settings.seed)[:self.size].sort().values
        ids = ids.to(dataset.labels.device)[distributed.rank()::distributed.world()]
        self.settings, self.ids = settings, ids
        self.defends = settings.attack != "none" and settings.epsilon > 0
        self.images, self.labels = dataset.images[ids], dataset.labels[ids]
        self.collapses: list[dict] = []
        self.collapsed, self.good = False, None

    def clean(self, model: nn.Module) -> float:
        """The clean accuracy of the model, in eval mode, on the slice."""
        right = models.predict(model, self.images) == self.labels
        return distributed.total(right.sum()).item() / self.size

    def measure(self, model: nn.Module) -> tuple[float, float]:
        """(accuracy under PGD-10, clean accuracy) of the model, in eval mode, on the slice."""
        right = torch.zeros(2, device=self.labels.device, dtype=torch.float64)

        def work(first, end):
            right.add_(self._right(model, first, end))

        with attacks.evaluating(model), torch.no_grad():
            memory.in_parts(work, len(self.ids), len(self.ids))
        robust, clean = (distributed.total(right) / self.size).tolist()
        return robust, clean

    def _right(self, model, first, end):
        """How many of these images of the slice are classified right: [attacked, clean]."""
        images, labels, eps = self.images[first:end], self.labels[first:end], self.settings.epsilon
        adv = attacks.pgd(model, images, labels, self.ids[first:end], eps=eps, alpha=eps / 4,
                          steps=STEPS, seed=self.settings.seed)
        return torch.stack([(attacks.predicted(model(x)) == labels).sum().double()
                            for x in (adv, ops.pixels(images))])

    @property
    def lost(self) -> int:
        """How many examples were visited in epochs that were rolled back."""
        return sum(event.get("lost", 0) for event in self.collapses)

    def keep(self, training: Any) -> None:
        """Keep this state to roll back to, if the settings want that."""
        if self.settings.on_collapse == "rollback" and not self.collapsed:
            self.good = None  # the one before is no part of it
            self.good = copy.deepcopy(training.state())

    def watch(self, training: Any) -> str | None:
        """What to tell the user if the newest check saw a collapse; None otherwise.

        With --on-collapse rollback the training goes back to its last good state, and on from
        there with the attack of config.remedy.
        """
        a, now = self.settings, training.rows[-1]
        if now["robust"] is None:
            return None
        how = collapse(training.rows) if self.defends else None
        if how is None or self.collapsed:
            self.collapsed = self.collapsed and now["robust"] < 0.1
            self.keep(training)
            return None
        event = {"epoch": now["epoch"], "lr": now["lr"], "how": how,
                 "attack": training.attack["kind"], "action": a.on_collapse}
        self.collapses.append(event)
        remedy = config.remedy(a.dataset, a.epsilon)
        if a.on_collapse != "rollback" or training.attack["kind"] in ("pgd", remedy["kind"]):
            event["action"], self.collapsed = "stop" if a.on_collapse == "stop" else "warn", True
            return _words(event)
        rows, seconds, collapses = training.rows, training.seconds, self.collapses
        good = self.good
        training.restore(copy.deepcopy(good))
        event["lost"] = sum(row["examples"] for row in rows[len(training.rows):])
        training.seconds = seconds  # what was lost took time
        self.good, self.collapses, training.attack = good, collapses, remedy
        steps = f" of {remedy['steps']} steps" if remedy["kind"] == "pgd" else ""
        return (f"{_words(event)}; back to the end of epoch {len(training.rows)}, and on with "
                f"{remedy['kind']}{steps}")

    def undefended(self, row: dict) -> str | None:
        """What to tell the user whose run ended with this row, but is no defence; else None."""
        if not (self.defends and fragile(row)):
            return None
        return ("accuracy on training examples is {clean:.3f}, but {robust:.3f} under PGD; such a "
                "network is no defence: train with --recipe robust, longer, or with a smaller "
                "--epsilon").format(**row)

    @property
    def stopped(self) -> str | None:
        """What to tell the user if a collapse was to stop the run; None otherwise."""
        return next((_words(event) for event in self.collapses if event["action"] == "stop"), None)

    def state(self) -> dict:
        return {"collapses": self.collapses, "collapsed": self.collapsed, "good": self.good}

    def restore(self, state: dict) -> None:
        """Go back to a state that `state` gave."""
        self.collapses, self.collapsed = state["collapses"], state["collapsed"]
        self.good = state["good"]


def due(settings: config.Settings, dataset: data.Dataset, size: int) -> set[int]:
    """After how many epochs a slice of `size` examples is checked: as often as SHARE pays for.

    The checks are spread evenly, up to the end; of two or more, one comes before the pruning. It
    counts passes and not seconds, so that a run is the same on every machine.
    """
    a = settings
    if a.on_collapse == "off":
        return set()
    images = dataset.examples_of(a, unknown=pruning.MOST_WRONG)
    checks = int(SHARE * images * a.passes / (size * CHECK))
    before = {a.epoch} if a.epoch and checks > 1 else set()
    even = min(a.epochs, checks - len(before))
    return before | {a.epochs * (i + 1) // even for i in range(even)}


def _words(event):
    said = (f"the network collapsed by epoch {event['epoch']}: accuracy under PGD went "
            f"{event['how']} (training examples)")
    if event["action"] == "rollback":
        return said
    return (f"{said}; such a network is no defence: train with --recipe robust, or with "
            "--on-collapse rollback")


def collapse(rows: Sequence[dict]) -> str | None:
    """How the newest row of a log, which has a check, collapsed, in words; None if it did not.

    A collapse: robust accuracy fell by DROP, or to less than half, since the check before; or it
    is below 0.05 while training accuracy is above 0.6. In each case training accuracy must be far
    above robust accuracy: after pruning both may fall, and that is no collapse.
    """
    now = rows[-1]
    before = [0.0, *(row["robust"] for row in rows[:-1] if row["robust"] is not None)][-1]
    if now["accuracy"] - now["robust"] < DROP:
        return None
    if before - now["robust"] >= DROP or (before >= 0.1 and now["robust"] < before / 2):
        return f"from {before:.3f} to {now['robust']:.3f}"
    if now["robust"] < 0.05 and now["accuracy"] > 0.6:
        return f"to {now['robust']:.3f}"
    return None


def fragile(row: dict) -> bool:
    """Whether robust accuracy is below a tenth of clean accuracy, and far below it.

    At the end of a run only: many a good run is fragile in its first epochs.
    """
    return (row["robust"] is not None and row["robust"] < row["clean"] / 10
            and row["clean"] - row["robust"] >= DROP)
