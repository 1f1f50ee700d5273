"""Which training examples to keep: score them, select by score, adapt their budgets.

A score is a function of (model, x, labels, ids, ...) that gives one number for each image of a
batch; or a class that sees each batch of the training:

    loss          cross-entropy on the RS+FGSM example (Algorithm 1, line 6)
    clean-loss    cross-entropy on the example itself (section 5.1)
    margin        DeepFool's distance to the decision boundary; 0 if misclassified, the largest
                  possible distance if no boundary was found
    running-loss  the loss of each example when it was trained on last (train.py alone)

A rule is a function of (scores, labels, p, seed, epoch) that gives the ids of those that stay; or
these ids and their weights:

    high, low     drop the highest, or the lowest, scores
    low+high      drop half from each end
    middle        drop the scores nearest the mean
    extremes      drop the scores farthest from it, from whichever side
    random        drop any examples        none     drop nothing

So `high` drops the hardest examples when the score is a loss, and the easiest when it is a margin.
Your own scores and rules have the same form (docs/strategies.md). This module needs torch and
numpy.
"""
import inspect
import math
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advprune import attacks, distributed, memory, ops
from advprune.errors import UserError, first_line

LEAST_WRONG, MOST_WRONG = 0.05, 0.5  # the bounds of --p auto
SAVE_SECONDS = 10.0  # between saves: an interruption loses at most this much work


# --- scores of a batch: x [B, C, H, W] float32 in [0, 1], labels and ids [B] int64 -> [B]

def loss(model: nn.Module, x: Tensor, labels: Tensor, ids: Tensor, *, eps: float, alpha: float,
         seed: int, epoch: int, clip_start: bool) -> Tensor:
    adv = attacks.rs_fgsm(model, x, labels, ids, eps=eps, alpha=alpha, seed=seed, epoch=epoch,
                          clip_start=clip_start)
    return clean_loss(model, adv, labels, ids)


def clean_loss(model: nn.Module, x: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    logits = attacks.logits_of(model, x).float()
    attacks.check_classes(labels, logits)
    return ops.cross_entropy_scores(logits, labels)[0]


def margin(model: nn.Module, x: Tensor, labels: Tensor, ids: Tensor, *, norm: str,
           classes: int | None) -> Tensor:
    found = attacks.deepfool(model, x, labels, norm, classes=classes)
    # If DeepFool did not cross a boundary, its distance is too short: it only says how far it
    # went. Such an example counts as the farthest possible. NaN stays NaN.
    return torch.where(found.crossed, found.distance, found.distance.clamp(min=farthest(x, norm)))


SCORES: dict[str, Callable] = {"loss": loss, "clean-loss": clean_loss, "margin": margin}


# --- scores that see the training

class RunningLoss:
    """The training loss of each example when it was trained on last; 0 before.

    What such an object keeps, tensors and numbers, goes into the run's checkpoints.
    """

    def __init__(self, n: int) -> None:
        """n: the number of training examples. Tensors made here lie on the training's device."""
        self.losses = torch.zeros(n)

    def see(self, ids: Tensor, labels: Tensor, logits: Tensor, losses: Tensor, epoch: int
            ) -> None:
        """A batch of the training: ids, labels, losses [B] and logits [B, K] under attack."""
        self.losses[ids] = losses

    def scores(self) -> Tensor:
        """The score of each example [n]."""
        return self.losses


OBSERVERS = {"running-loss": RunningLoss}


# --- rules: scores [n] float32, labels [n] -> the ids that stay

def keep_all(scores: Tensor, labels: Tensor | None, p: float, seed: int, epoch: int
             ) -> Tensor:
    return torch.arange(len(scores), device=scores.device)


def keep_random(scores: Tensor, labels: Tensor | None, p: float, seed: int, epoch: int
                ) -> Tensor:
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    return order[round(p * len(scores)):].sort().values.to(scores.device)


def keep_by(how: str, scores: Tensor, labels: Tensor | None, p: float, seed: int, epoch: int
            ) -> Tensor:
    return ops.select_kept(scores, round(p * len(scores)), how)


RULES: dict[str, Callable] = {
    "none": keep_all, "random": keep_random,
    **{how: partial(keep_by, how) for how in ("high", "low", "low+high", "middle", "extremes")}}
STRATEGIES = tuple(RULES)


def at_once(device: torch.device) -> int:
    """How many images to score at once: more than 128 do not fit the caches of a CPU."""
    return 128 if device.type == "cpu" else 500


def score(model: nn.Module, images: Any, labels: Any, kind: str | Callable = "loss", *,
          eps: float | None = None, alpha: float | None = None, seed: int = 0, epoch: int = 0,
          clip_start: bool = False, norm: str = "linf",
          classes: int | None = None, batch_size: int | None = None, bar: Any = None,
          state: Any = None) -> Tensor:
    """Scores [N] float32 of all examples, on the device of the labels; the model in eval mode.

    images: a tensor or array [N, C, H, W], uint8 or in [0, 1], or any object whose images[ids] is
    such a batch, for a tensor of ids. labels: N whole numbers. An example's id is its place in
    both. Batches of `at_once` images go to the model's device. The work is shared by torchrun's
    processes. kind: one of SCORES, or a function of their form; it gets those of the arguments
    below, up to classes, that it takes.

    kind `loss` needs eps, the l-infinity budget in [0, 1] pixels; its step is alpha (default
    1.25 eps, as fast_adversarial); seed and epoch choose the noise; clip_start keeps the random
    start in the box. kind `margin` takes attacks.deepfool's norm and classes. bar is a tqdm
    bar to move. state keeps the progress, and continues it: an object with read(device) and
    write(content), such as checkpoint.State. Use another one for other arguments.

    Raises ValueError for an unknown kind, a missing eps, lengths that differ, and what
    attacks.checked refuses; UserError for scores that are not finite (it says how many), and if
    a function of the user's own fails or gives anything but a number for each image.
    """
    function = SCORES.get(kind) if isinstance(kind, str) else kind
    if function is None:
        also = "; train.py collects running-loss itself" if kind in OBSERVERS else ""
        raise ValueError(f"unknown score {kind!r}: choose from {', '.join(SCORES)}{also}")
    if kind == "loss" and eps is None:
        raise ValueError("the score 'loss' needs eps, the l-infinity budget in [0, 1] pixels; "
                         "give eps=8/255, for example")
    eps = 0.0 if eps is None else float(eps)
    attacks.norm_order(norm)
    how = dict(eps=eps, alpha=1.25 * eps if alpha is None else alpha, seed=seed, epoch=epoch,
               clip_start=clip_start, norm=norm, classes=classes)
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
        x = _gather(images, batch, device)
        found = call(function, model, x, labels[batch].to(device), batch.to(device), **how)
        scores[batch] = numbers(function, found, len(batch)).to(scores.device)
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
    return finite(function, distributed.total(scores))


def call(function: Callable, *args: Any, **options: Any) -> Any:
    """What a score or rule gives, with those of the options that it takes.

    Raises UserError, with the line, if a user's function fails.
    """
    if options:
        takes = inspect.signature(function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            options = {name: value for name, value in options.items() if name in takes}
    try:
        return function(*args, **options)
    except Exception as error:
        if function in (*SCORES.values(), *RULES.values()) or memory.exhausted(error):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        file = getattr(getattr(function, "__code__", None), "co_filename", None)
        theirs = [frame for frame in frames if frame.filename == file]
        line = (theirs or frames)[-1]
        raise UserError(f"{named(function)} failed with {first_line(error)} (line {line.lineno} "
                        f"of {line.filename})") from error


def named(function: Callable) -> str:
    """How a sentence calls a score or rule."""
    known = {value: name for name, value in (SCORES | RULES | OBSERVERS).items()}
    return known.get(function) or str(getattr(function, "__name__", type(function).__name__))


def numbers(function: Callable, found: Any, n: int) -> Tensor:
    """The n scores that a score function gave, as float32. Raises UserError for anything else."""
    try:
        scores = torch.as_tensor(found).detach().float()
    except (TypeError, ValueError, RuntimeError):
        scores = torch.empty(())
    if scores.shape != (n,):
        given = list(scores.shape) if scores.dim() else type(found).__name__
        raise UserError(f"{named(function)} must give one number for each example, [{n}], not "
                        f"{given}")
    return scores


def finite(function: Callable, scores: Tensor) -> Tensor:
    """The scores. Raises UserError, which says how many, if some are not finite."""
    if bad := int((~scores.isfinite()).sum()):
        why = (": the network gives NaN or infinite logits for them"
               if function in SCORES.values() else "")
        raise UserError(f"{bad} of the {len(scores)} {named(function)} scores are not finite{why}")
    return scores


def _gather(images, ids, device):
    """The batch of these ids as float32 in [0, 1] on the device."""
    if isinstance(images, np.ndarray):
        x = torch.from_numpy(images[ids.cpu().numpy()])
    else:
        x = images[ids.to(getattr(images, "device", ids.device))]
    return ops.pixels(attacks.checked(x)[0].to(device))


def farthest(images: Any, norm: str) -> float:
    """The largest distance between two points of the box [0, 1]^(C H W) of these images."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(images.shape[1:]))


def select(scores: Any, how: str, p: float, seed: int = 0, labels: Tensor | None = None
           ) -> Tensor:
    """The sorted ids of the n - round(p n) examples that stay, given scores [n], as float32.

    how is one of STRATEGIES; among equal scores at a cut the lowest ids stay. With labels [n]
    every class loses the same fraction; the total, round(p n), is split by largest remainders. The
    result depends on the arguments alone. Raises ValueError for p outside [0, 1), an unknown
    `how`, and scores that are not finite (it says how many).
    """
    if how not in RULES:
        raise ValueError(f"unknown strategy {how!r}: choose from {', '.join(STRATEGIES)}")
    if not 0 <= p < 1:
        raise ValueError(f"p is the fraction to drop, at least 0 and below 1, not {p}")
    rule, scores = RULES[how], torch.as_tensor(scores).detach().float()
    drop = round(p * len(scores))
    if labels is None or how == "none" or drop == 0:
        return rule(scores, labels, p, seed, 0)
    members = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    shares = [p * len(member) for member in members]
    quota = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda c: quota[c] - shares[c])
    for c in by_remainder[:drop - sum(quota)]:
        quota[c] += 1
    kept = [m[rule(scores[m], labels[m], q / len(m), seed + c, 0)]
            for c, (m, q) in enumerate(zip(members, quota, strict=True))]
    return torch.cat(kept).sort().values


def keep(rule: str | Callable, scores: Tensor, labels: Tensor, p: float, *, seed: int = 0,
         epoch: int = 0, class_balanced: bool = False, model: nn.Module | None = None,
         images: Any = None) -> tuple[Tensor, Tensor | None]:
    """(the sorted ids that stay, their weights in the loss [n], or None if all count alike).

    rule: one of STRATEGIES, or a function of (scores [n], labels [n], p, seed, epoch) that gives
    ids, or ids and their weights. It gets model, in eval mode and without gradients, and images,
    as `score` takes them, if it has arguments of these names. In the weights [n] the others have
    0. Raises UserError, which names the function, for ids that are outside, twice or none, and for
    weights that are not finite, or below 0.
    """
    if isinstance(rule, str):
        balance = labels if class_balanced else None
        return select(scores, rule, p, seed, balance), None
    n, name = len(scores), named(rule)
    copies = scores.clone(), labels.clone()  # it may write into them
    with attacks.evaluating(model) if model else nullcontext(), torch.no_grad():
        found = call(rule, *copies, p, seed, epoch, model=model, images=images)
    ids, weights = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    try:
        ids = torch.as_tensor(ids, device=scores.device)
    except (TypeError, ValueError, RuntimeError):
        ids = torch.empty(())
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise UserError(f"{name} must give the ids that stay, a vector of whole numbers, not "
                        f"{type(found).__name__} of {ids.dtype} {list(ids.shape)}")
    ids = ids.long()
    if len(ids) == 0:
        raise UserError(f"{name} keeps no example")
    if int(ids.min()) < 0 or int(ids.max()) >= n:
        raise UserError(f"{name} gives the id {int(ids.min() if ids.min() < 0 else ids.max())}, "
                        f"but ids go from 0 to {n - 1}")
    if twice := len(ids) - len(ids.unique()):
        raise UserError(f"{name} gives {twice} of its {len(ids)} ids twice")
    if weights is None:
        return ids.sort().values, None
    weights = numbers(rule, weights, len(ids)).to(scores.device)
    if not (weights.isfinite().all() and (weights >= 0).all()):
        raise UserError(f"{name} gives weights that are not finite, or below 0")
    return ids.sort().values, torch.zeros(n, device=scores.device).index_copy(0, ids, weights)


def wrong_share(model: nn.Module, images: Any, labels: Any, batch_size: int | None = None
                ) -> float:
    """The share of the labels that look wrong to the network, by confident learning.

    model, images, labels and batch_size: as `score` takes them. Northcutt et al. 2021: the network
    believes in a class if it gives it at least the mean probability that it gives this class on
    the images so labelled; of several such classes, in the most probable. Of the images of a
    label for which it believes in a class, those with another one say how many of the label's
    images are wrong. The authors judge images that were not trained on; a network that was
    trained on them finds fewer.
    """
    labels = attacks.class_labels(labels, len(images))
    given = score(model, images, labels, "clean-loss", batch_size=batch_size).double().neg().exp()
    n = labels.bincount()
    least = given.new_zeros(len(n)).index_add(0, labels, given) / n - 1e-6  # for the rounding

    def believed(model, x, labels, ids):  # a class, or -1
        probabilities = attacks.logits_of(model, x).double().softmax(1)[:, :len(least)]
        found = probabilities.where(probabilities >= least.to(x.device), 0).max(1)
        return torch.where(found.values > 0, found.indices, -1)

    classes = score(model, images, labels, believed, batch_size=batch_size)
    sure, other = classes >= 0, (classes >= 0) & (classes != labels)
    wrong = labels[other].bincount(minlength=len(n)) / labels[sure].bincount(minlength=len(n))
    return float((wrong.nan_to_num() * n).sum() / n.sum())


def automatic(share: float) -> tuple[float, str]:
    """(the fraction to drop with --p auto, a sentence that says it) for this `wrong_share`.

    At most MOST_WRONG. Less than LEAST_WRONG is not told from none, so nothing is dropped.
    """
    p = min(share, MOST_WRONG) if share >= LEAST_WRONG else 0.0
    why = (f"; less than {LEAST_WRONG:.0%} counts as none" if not p
           else f"; {MOST_WRONG:.0%} is the most" if share > MOST_WRONG else "")
    return p, f"--p auto: {share:.1%} of the labels look wrong, so p = {p:.3f}{why}"


def starved(labels: Tensor, kept: Tensor) -> list[tuple[int, int, int]]:
    """(class, how many stay, of how many) if a class has under a quarter of its share.

    labels [n] of all examples, kept: the ids that stay. A class's share of them is its share of
    all.
    """
    before = labels.bincount()
    after = labels[kept].bincount(minlength=len(before))
    few = after < before * (len(kept) / len(labels) / 4)
    return [(i, int(after[i]), int(before[i])) for i in few.nonzero().flatten().tolist()]


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
