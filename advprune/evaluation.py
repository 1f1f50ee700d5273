"""Which test images a network still classifies right under attacks, one attack after another."""
import logging
import sys
import time
from collections.abc import Iterable
from typing import Any

import torch
from pyautoattack import AutoAttack, checks
from torch import Tensor, nn
from tqdm import tqdm

from advprune import attacks, checkpoint, memory, models, ops

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")  # AutoAttack (Croce & Hein 2020)
FEW_CLASSES = {2: ("apgd-ce", "fab-t", "square"),  # the targeted DLR loss needs four logits,
               3: ("apgd-ce", "apgd-dlr", "fab-t", "square")}  # the untargeted one three
ATTACKS = {"clean": (), "fgsm": ("fgsm",), "pgd": ("pgd-50-10",), "pgd-20": ("pgd-20",),
           "apgd": ("apgd-ce",),
           "autoattack": STANDARD, **{name: (name,) for name in STANDARD}}
ROUNDING = 1e-6  # how far float32 arithmetic may carry an attack past eps
LOGGER = logging.getLogger("auto-attack")  # pyautoattack's
WARNINGS = {  # a part of what it warns of, and what we say instead
    "randomized": "the network gives other logits for the same images: to attacks that do not "
                  "average over them it looks more robust than it is",
    "probability": "the network seems to give probabilities: leave out its softmax, because "
                   "attacks need the logits",
    "dynamic": "the network computes gradients while it classifies: to attacks that do not know "
               "of that it looks more robust than it is",
    "zero gradient": "the loss has no gradient at some images: attacks that follow gradients may "
                     "miss adversarial examples there",
    "DLR loss": None}  # of three classes: it means the targeted loss, but of_names takes the other
MASKED = ("square, which needs no gradient, broke {:.1%} of the images after the other attacks: "
          "attacks that follow gradients may be misled by this network")
NO_CLASS = ("the network gives NaN or infinite logits under attack: such images count as broken, "
            "but AutoAttack takes NaN for the first class and may miss some")
PART = 128  # images that the network sees at a time on a CPU, so that they fit into its caches


def of_names(names: Iterable[str], classes: int) -> list[str]:
    """The attacks that these names stand for, given the number of classes, each once."""
    known = {**ATTACKS, "autoattack": FEW_CLASSES.get(classes, STANDARD)}
    return list(dict.fromkeys(attack for name in names for attack in known[name]))


class InParts(nn.Module):
    """A network that on a CPU takes a batch of any size in parts of PART images.

    An attack sees whole batches, so that its random numbers do not depend on this. failed says
    whether it predicted no class for some images.
    """

    failed: bool | Tensor = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The logits [B, K] of x [B, C, H, W]."""
        parts = x.split(PART) if x.device.type == "cpu" else [x]
        logits = torch.cat([attacks.logits_of(self.model, part) for part in parts])
        self.failed = self.failed | (attacks.predicted(logits) < 0).any()
        return logits


def perturb(attack: str, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, eps: float,
            step: float, seed: int) -> Tensor:
    """One attack's adversarial examples of x [B, C, H, W] in [0, 1], all classified as y [B].

    The members of AutoAttack are the package's own, and take one eps for all images. Raises what
    attacks.checked does.
    """
    if attack == "fgsm":
        return attacks.rs_fgsm(model, x, y, ids, eps=eps, alpha=eps, seed=seed, epoch=0,
                               noise_scale=0.0)
    if attack.startswith("pgd-"):  # its steps, and restarts
        steps, restarts = [*map(int, attack.split("-")[1:]), 1][:2]
        return attacks.pgd(model, x, y, ids, eps=eps, alpha=step, steps=steps, restarts=restarts,
                           seed=seed)
    x, y, *_ = attacks.checked(x, y, eps)
    x, model = ops.pixels(x), InParts(model)  # which takes float32 for any network
    logits = model(x[:1])
    attacks.check_classes(y, logits)
    standard = AutoAttack(model, eps=float(eps), seed=seed, device=x.device)
    standard.attacks_to_run = [attack]
    others = logits.shape[1] - 1  # its default is nine target classes, whatever there are
    standard.apgd_targeted.n_target_classes = standard.fab.n_target_classes = min(9, others)
    return standard.run_standard_evaluation(x, y, batch_size=len(x))[0]


def interval(count: int, n: int) -> list[float]:
    """Wilson's 95 % score interval for a proportion, as [low, high]."""
    from scipy.stats import binomtest  # here, because the import takes a second

    return list(binomtest(count, n).proportion_ci(method="wilson"))


class Evaluation:
    """Which images are still classified right after each attack; a state file has it all.

    Each attack goes over all images before the next one does. With settings["until"], a width,
    all attacks go over one batch before the next batch, until Wilson's interval is narrower.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, settings: dict[str, Any],
                 state: checkpoint.State) -> None:
        """images, labels: as models.right takes them; state: where its work is, if cut off."""
        self.images, self.labels, self.settings, self.state = images, labels, settings, state
        self.right = models.right(model, images, labels)  # [N], of the images themselves
        self.robust = self.right.clone()  # [N]
        # If asked for: of each image the adversarial example that broke it, or the last that it
        # stood, and the class that is predicted for it. It is the image itself if right is False,
        # or if only members of AutoAttack were tried: they give back what they do not break.
        self.examples: dict[str, Tensor] = {}
        if settings.get("save") or settings.get("pictures"):
            self.examples = {"adversarial": ops.pixels(images[:]).clone(),
                             "predicted": models.predict(model, images)}
        self.judged, self.largest, self.seconds = 0, 0.0, 0.0  # judged: images, by all attacks
        self.per_attack: dict[str, dict[str, int]] = {}
        self.warnings: list[str] = []  # of what makes these attacks unreliable, once each
        # Of the images up to the next stop: the attacks that are over, the ids that the next one
        # is for, how many of these are done.
        self.over: list[str] = []
        self.todo: Tensor | None = None
        self.done = 0
        for name, value in (state.read(labels.device) or {}).items():
            setattr(self, name, value)
        self.model = InParts(model)
        self.save()

    def run(self) -> None:
        """Judge the images by the attacks of the settings."""
        LOGGER.addFilter(self.heard)
        try:
            self.judge(self.settings["attacks"])
        finally:
            LOGGER.removeFilter(self.heard)

    def judge(self, names: list[str]) -> None:
        """Check the network, then attack batch after batch."""
        n, until = len(self.labels), self.settings.get("until")
        if names:
            memory.in_parts(self.check, min(n, PART), PART)
        while self.judged < n and not self.narrow():
            stop = min(n, self.judged + self.settings["batch_size"]) if until else n
            for name in names:
                if name not in self.over:
                    self.attack(name, stop)
            self.judged, self.over = stop, []
            self.save()
        if names[-1:] == ["square"] and "apgd-ce" in names:  # as pyautoattack, given both at once
            share = self.per_attack["square"]["broken"] / self.judged
            if share > 0.002:
                self.warn(MASKED.format(share))

    def check(self, first: int, end: int) -> None:
        """pyautoattack's checks of the network, which only some attacks bring along."""
        checks.funcs.update(dict.fromkeys(checks.funcs, 0))  # it never forgets an earlier network
        x, y = ops.pixels(self.images[first:end]), self.labels[first:end]
        checks.check_randomized(self.model, x, y, logger=LOGGER)
        checks.check_range_output(self.model, x, logger=LOGGER)
        checks.check_dynamic(self.model, x, logger=LOGGER)
        grad = attacks.input_grad(self.model, x, y).nan_to_num(0)  # NaN moves no pixel either
        checks.check_zero_gradients(grad.contiguous(), logger=LOGGER)

    def heard(self, record: logging.LogRecord) -> bool:
        """A filter of pyautoattack's log, which holds back its warnings and gives ours."""
        if record.levelno < logging.WARNING:
            return True
        said = record.getMessage()
        if ours := next((ours for part, ours in WARNINGS.items() if part in said), said):
            self.warn(ours)
        return False

    def warn(self, sentence: str) -> None:
        """Say this once on stderr, and in the record."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            tqdm.write(f"evaluate.py: {sentence}", file=sys.stderr)

    def narrow(self) -> bool:
        """Whether the interval of the images judged so far is as narrow as it was to be."""
        if not self.judged or not self.settings.get("until"):
            return False
        low, high = interval(int(self.robust[:self.judged].sum()), self.judged)
        return high - low < self.settings["until"]

    def attack(self, name: str, stop: int) -> None:
        """Attack those of the images up to stop that are not judged yet and still right."""
        if self.todo is None:
            self.todo, self.done = self.judged + self.robust[self.judged:stop].nonzero()[:, 0], 0
        n, todo = len(self.todo), self.todo
        with tqdm(total=n, initial=self.done, desc=name, unit="img", disable=None,
                  leave=not self.settings.get("until")) as bar:
            def work(first, end):
                self.batch(name, todo[first:end])
                bar.update(end - first)
                bar.set_postfix(robust=int(self.robust[:stop].sum()))

            memory.in_parts(work, n, self.settings["batch_size"], self.done)
        left = int(self.robust[self.todo].sum())
        before = self.per_attack.get(name, {"attacked": 0, "broken": 0, "robust_count": 0})
        self.per_attack[name] = {key: before[key] + more for key, more in (
            ("attacked", n), ("broken", n - left), ("robust_count", left))}
        self.over, self.todo = [*self.over, name], None
        self.save()

    def batch(self, name: str, ids: Tensor) -> None:
        """Attack the images of these ids at once."""
        start, eps = time.perf_counter(), self.settings["epsilon"]
        x, y = ops.pixels(self.images[ids]), self.labels[ids]
        adv = perturb(name, self.model, x, y, ids, eps, self.settings["step"],
                      self.settings["seed"])
        distance = (adv - x).abs().max().item()
        if not (distance <= eps + ROUNDING and adv.min() >= 0 and adv.max() <= 1):
            raise RuntimeError(f"the result is void: {name} left the ball or the box (distance "
                               f"{distance})")
        self.largest = max(self.largest, distance)
        with torch.no_grad():
            classes = attacks.predicted(self.model(adv))
        self.robust[ids] = classes == y
        if self.examples:
            changed = (adv != x).flatten(1).any(1)
            self.examples["adversarial"][ids[changed]] = adv[changed]
            self.examples["predicted"][ids[changed]] = classes[changed]
        if self.model.failed:
            self.warn(NO_CLASS)
        self.done += len(ids)
        self.seconds += time.perf_counter() - start
        self.save()

    def by_class(self, classes: list) -> list[dict[str, Any]]:
        """The accuracies of the judged images of each class, with intervals."""
        rows = []
        for label, name in enumerate(classes):
            members = (self.labels[:self.judged] == label).nonzero()[:, 0]
            if n := len(members):
                clean, robust = (int(stood[members].sum()) for stood in (self.right, self.robust))
                rows.append({"class": name, "n": n, "clean_accuracy": clean / n,
                             "clean_interval": interval(clean, n), "robust_accuracy": robust / n,
                             "robust_interval": interval(robust, n)})
        return rows

    def save(self) -> None:
        kept = ("settings", "robust", "examples", "per_attack", "judged", "over", "todo", "done",
                "largest", "seconds", "warnings")
        self.state.write({name: getattr(self, name) for name in kept})
