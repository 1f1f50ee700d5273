"""Which test images a network still classifies right under attacks, one attack after another."""
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from advprune import attacks, chunks, files, members, memory, models

ATTACKS = {"clean": (), "fgsm": ("fgsm",), "pgd": ("pgd-50-10",), "apgd": ("apgd-ce",),
           "autoattack": members.STANDARD, **{name: (name,) for name in members.STANDARD}}
ROUNDING = 1e-6  # how far float32 arithmetic may carry an attack past eps


def of_names(names: Iterable[str], classes: int) -> list[str]:
    """The attacks that these names stand for, given the number of classes, each once."""
    known = {**ATTACKS, "autoattack": members.FEW_CLASSES.get(classes, members.STANDARD)}
    return list(dict.fromkeys(attack for name in names for attack in known[name]))


def perturb(attack: str, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, eps: float,
            step: float, seed: int) -> Tensor:
    """One attack's adversarial examples of x [B, C, H, W] in [0, 1], all classified as y [B]."""
    if attack == "fgsm":
        return attacks.rs_fgsm(model, x, y, ids, eps=eps, alpha=eps, seed=seed, epoch=0,
                               noise_scale=0.0)
    if attack == "pgd-50-10":
        return attacks.pgd(model, x, y, ids, eps=eps, alpha=step, steps=50, restarts=10, seed=seed)
    return members.perturb(attack, model, x, y, eps, seed)


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
                 path: Path, state: dict[str, Any] | None) -> None:
        """images [N, C, H, W] uint8, labels [N]; state: what `path` has of an interrupted one."""
        self.images, self.labels, self.settings, self.path = images, labels, settings, path
        self.right = models.predict(model, images) == labels  # [N], of the images themselves
        self.robust = self.right.clone()  # [N]
        self.judged, self.largest, self.seconds = 0, 0.0, 0.0  # judged: images, by all attacks
        self.per_attack: dict[str, dict[str, int]] = {}
        # Of the images up to the next stop: the attacks that are over, the ids that the next one
        # is for, how many of these are done.
        self.over: list[str] = list((state or {}).get("per_attack", ()))
        self.todo: Tensor | None = None
        self.done = 0
        self.chunk: int | None = None  # a resumed evaluation does not choose anew
        for name, value in (state or {}).items():
            setattr(self, name, value.to(labels.device) if torch.is_tensor(value) else value)
        self.model = self._in_chunks(model)
        self.save()

    def _in_chunks(self, model):
        if self.chunk is None and set(self.settings["attacks"]) <= {"fgsm"}:  # one pass
            return model
        chosen = (chunks.Chunks(model, self.chunk) if self.chunk is not None else
                  chunks.fastest(model, self.images[:self.settings["batch_size"]].float() / 255))
        self.chunk = chosen.size
        return chosen

    def run(self) -> None:
        """Judge the images by the attacks of the settings."""
        n, until = len(self.labels), self.settings.get("until")
        while self.judged < n and not self.narrow():
            stop = min(n, self.judged + self.settings["batch_size"]) if until else n
            for name in self.settings["attacks"]:
                if name not in self.over:
                    self.attack(name, stop)
            self.judged, self.over = stop, []
            self.save()

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
        n, batch_size = len(self.todo), self.settings["batch_size"]
        with tqdm(total=n, initial=self.done, desc=name, unit="img", disable=None,
                  leave="until" not in self.settings) as bar:
            while self.done < n:
                ids = self.todo[self.done:][:batch_size]
                try:
                    self.batch(name, ids)
                except (RuntimeError, MemoryError) as error:
                    batch_size = memory.halved(len(ids), error)
                    continue
                bar.update(len(ids))
                bar.set_postfix(robust=int(self.robust[:stop].sum()))
        left = int(self.robust[self.todo].sum())
        before = self.per_attack.get(name, {"attacked": 0, "broken": 0, "robust_count": 0})
        self.per_attack[name] = {key: before[key] + more for key, more in (
            ("attacked", n), ("broken", n - left), ("robust_count", left))}
        self.over, self.todo = [*self.over, name], None
        self.save()

    def batch(self, name: str, ids: Tensor) -> None:
        """Attack the images of these ids at once."""
        start, eps = time.perf_counter(), self.settings["epsilon"]
        x, y = self.images[ids].float() / 255, self.labels[ids]
        adv = perturb(name, self.model, x, y, ids, eps, self.settings["step"],
                      self.settings["seed"])
        distance = (adv - x).abs().max().item()
        if not (distance <= eps + ROUNDING and adv.min() >= 0 and adv.max() <= 1):
            raise RuntimeError(f"the result is void: {name} left the ball or the box (distance "
                               f"{distance})")
        self.largest = max(self.largest, distance)
        with torch.no_grad():
            self.robust[ids] = self.model(adv).argmax(1) == y
        self.done += len(ids)
        self.seconds += time.perf_counter() - start
        self.save()

    def save(self) -> None:
        kept = ("settings", "robust", "per_attack", "judged", "over", "todo", "done", "chunk",
                "largest", "seconds")
        files.write_state(self.path, {name: getattr(self, name) for name in kept})
