"""Which training examples to keep: score them, select by score, adapt their budgets.

Scores          loss          cross-entropy on the RS+FGSM example (Algorithm 1, line 6)
                clean-loss    cross-entropy on the example itself (section 5.1)
                margin        DeepFool's distance to the decision boundary; 0 where misclassified,
                              the largest possible distance where no boundary was found
Strategies      high, low     drop the highest, or the lowest, scores
                low+high      drop half from each end
                middle        drop the scores nearest the mean
                extremes      drop the scores farthest from it, from whichever side
                random        drop any examples        none     drop nothing

So `high` drops the hardest examples when the score is a loss, and the easiest when it is a margin.
This module needs torch and numpy.
"""
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advprune import attacks, distributed, memory, ops
from advprune.errors import UserError

SCORES = ("loss", "clean-loss", "margin")
STRATEGIES = ("none", "random", "high", "low", "low+high", "middle", "extremes")
SAVE_SECONDS = 10.0  # between saves: an interruption loses at most this much work


def at_once(device: torch.device) -> int:
    """How many images to score at once: more than 128 do not fit the caches of a CPU."""
    return 128 if device.type == "cpu" else 500


def score(model: nn.Module, images: Any, labels: Any, kind: str = "loss", *,
          eps: float | None = None, alpha: float | None = None, seed: int = 0, epoch: int = 0,
          clip_start: bool = False, norm: str = "linf",
          classes: int | None = None, batch_size: int | None = None, bar: Any = None,
          state: Any = None) -> Tensor:
    """Scores [N] float32 of all examples, on the device of the labels; the model in eval mode.

    images: a tensor or array [N, C, H, W], uint8 or in [0, 1], or any object whose images[ids] is
    such a batch, for a tensor of ids. labels: N whole numbers. An example's id is its place in
    both. Batches of `at_once` images go to the model's device. The work is shared by torchrun's
    distributed.

    kind `loss` needs eps, the l-infinity budget in [0, 1] pixels; its step is alpha (default
    1.25 eps, as fast_adversarial); seed and epoch choose the noise; clip_start keeps the random
    start in the box. kind `margin` takes attacks.deepfool's norm and classes. bar is a tqdm
    bar to move. state keeps the progress, and continues it: an object with read(device) and
    write(content), such as checkpoint.State. Use another one for other arguments.

    Raises ValueError for an unknown kind, a missing eps, lengths that differ, scores that are not
    finite (it says how many), and what attacks.checked refuses.
    """
    if kind not in SCORES:
        also = "; train.py collects running-loss itself" if kind == "running-loss" else ""
        raise ValueError(f"unknown score {kind!r}: choose from {', '.join(SCORES)}{also}")
    if kind == "loss" and eps is None:
        raise ValueError("the score 'loss' needs eps, the l-infinity budget in [0, 1] pixels; "
                         "give eps=8/255, for example")
    eps = 0.0 if eps is None else float(eps)
    alpha = 1.25 * eps if alpha is None else alpha
    attacks.norm_order(norm)
    labels = attacks.class_labels(labels, len(images))
    device = next((p.device for p in model.parameters()), labels.device)
    batch_size = batch_size or at_once(device)
    ids = torch.arange(len(labels), device=labels.device)
    scores, done = torch.zeros(len(ids), device=ids.device), 0
    if state and (found := state.read(ids.device)):
        scores, done = found
    shard, saved = ids[distributed.rank()::distributed.world()], time.monotonic()
    if bar is not None:
        bar.n = bar.initial = done * distributed.world()

    def work(first, end):
        nonlocal done, saved
        batch = shard[first:end]
        x, y = _gather(images, batch, device), labels[batch].to(device)
        if kind == "loss":
            x = attacks.rs_fgsm(model, x, y, batch.to(device), eps=eps, alpha=alpha, seed=seed,
                                epoch=epoch, clip_start=clip_start)
        if kind == "margin":
            found = _margins(model, x, y, norm, classes)
        else:
            logits = attacks.logits_of(model, ops.pixels(x)).float()
            attacks.check_classes(y, logits)
            found = ops.cross_entropy_scores(logits, y)[0]
        scores[batch] = found.to(scores.device)
        done = end
        if bar is not None:
            bar.update(len(batch) * distributed.world())
        if state and time.monotonic() - saved > SAVE_SECONDS:
            state.write((scores, done))
            saved = time.monotonic()

    try:
        with attacks.evaluating(model), torch.no_grad():
            memory.in_parts(work, len(shard), batch_size, done)
    finally:
        if state:
            state.write((scores, done))
    scores = distributed.total(scores)
    if bad := int((~scores.isfinite()).sum()):
        raise UserError(f"{bad} of the {len(scores)} {kind} scores are not finite: the "
                        "network gives NaN or infinite logits for them")
    return scores


def _gather(images, ids, device):
    """The batch of these ids as a tensor on the device, uint8 or float32."""
    if isinstance(images, np.ndarray):
        x = torch.from_numpy(images[ids.cpu().numpy()])
    else:
        x = images[ids.to(getattr(images, "device", ids.device))]
    x = attacks.checked(x)[0]
    return (x.float() if x.dtype == torch.float64 else x).to(device)  # numpy makes float64


def farthest(images: Any, norm: str) -> float:
    """The largest distance between two points of the box [0, 1]^(C H W) of these images."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(images.shape[1:]))


def _margins(model, x, y, norm, classes):
    found = attacks.deepfool(model, x, y, norm, classes=classes)
    # Where DeepFool did not cross a boundary, its distance is too short: it only says how far it
    # went. Such an example counts as the farthest possible. NaN stays NaN.
    return torch.where(found.crossed, found.distance, found.distance.clamp(min=farthest(x, norm)))


def select(scores: Any, how: str, p: float, seed: int = 0, labels: Tensor | None = None
           ) -> Tensor:
    """The sorted ids of the n - round(p n) examples that stay, given scores [n], as float32.

    how is one of STRATEGIES; among equal scores at a cut the lowest ids stay. With labels [n]
    every class loses the same fraction; the total, round(p n), is split by largest remainders. The
    result depends on the arguments alone. Raises ValueError for p outside [0, 1), an unknown
    `how`, and scores that are not finite (it says how many).
    """
    if how not in STRATEGIES:
        raise ValueError(f"unknown strategy {how!r}: choose from {', '.join(STRATEGIES)}")
    if not 0 <= p < 1:
        raise ValueError(f"p is the fraction to drop, at least 0 and below 1, not {p}")
    scores = torch.as_tensor(scores).detach().float()
    ids = torch.arange(len(scores), device=scores.device)
    drop = 0 if how == "none" else round(p * len(scores))
    generator = torch.Generator().manual_seed(seed)
    if labels is None or drop == 0:
        return _keep(scores, ids, how, drop, generator)
    members = [ids[labels == c] for c in labels.unique()]
    shares = [p * len(member) for member in members]
    quota = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda c: quota[c] - shares[c])
    for c in by_remainder[:drop - sum(quota)]:
        quota[c] += 1
    kept = [_keep(scores[m], m, how, q, generator) for m, q in zip(members, quota, strict=True)]
    return torch.cat(kept).sort().values


def _keep(scores, ids, how, drop, generator):
    """The sorted rest of these ids when `drop` of them go."""
    if drop == 0:
        return ids
    if how == "random":
        kept = torch.randperm(len(ids), generator=generator)[drop:]
        return ids[kept.sort().values.to(ids.device)]
    return ids[ops.select_kept(scores, drop, how)]


def adapt(margins: Tensor, kept: Tensor, eps: float, fraction: float = 1.0, floor: float = 0.0
          ) -> Tensor:
    """The budget of every example [N]: clip(margin, floor, eps) on the lowest margins, else eps.

    margins [N] and eps in [0, 1] pixels. Of the `kept` ids the `fraction` of lowest margin is
    adapted. With floor 0 no adapted example crosses the margin model's boundary. An example that
    the margin model misclassifies gets the floor. This is OUR reading of PUMA's abstract (Maroto &
    Frossard 2024), which gives no formula. Raises ValueError for eps, fraction or floor outside
    [0, 1].
    """
    if not all(0 <= value <= 1 for value in (eps, fraction, floor)):
        raise ValueError(f"eps, fraction and floor are in [0, 1], not {eps}, {fraction} and "
                         f"{floor}: give eps=8/255, for example, not 8")
    budgets = torch.full_like(margins, eps)
    lowest = kept[margins[kept].argsort(stable=True)[:round(fraction * len(kept))]]
    budgets[lowest] = margins[lowest].clamp(min(floor, eps), eps)
    return budgets


def kind_name(kind: str, norm: str) -> str:
    """What a score file calls this kind of score: `margin-l2` for margins in l2, else the kind."""
    return "margin-l2" if kind == "margin" and norm == "l2" else kind
