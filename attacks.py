"""Adversarial examples within the l-infinity ball of radius eps and the box [0, 1].

    rs_fgsm    one step from a random start (Wong et al. 2020);
               with noise_scale=2, clip_ball=False N-FGSM (de Jorge et al. 2022),
               with noise_scale=0 plain FGSM (Goodfellow et al. 2015)
    pgd        projected gradient descent with restarts (Madry et al. 2018)
    pgd_kl     the same on TRADES' divergence (Zhang et al. 2019)

and, for distances, the nearest adversarial example at all:

    deepfool   DeepFool in the l-infinity or l2 norm (Moosavi-Dezfooli et al. 2016)

No attack computes a parameter's gradient or leaves a trace on the model.
"""
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

import ops


@contextmanager
def frozen(model, training=False):
    """The model in eval (or train) mode, parameters gradient-free; restored whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.train(training).requires_grad_(False)
        yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def input_grad(model, x, y):
    """The gradient [B, ...] of the summed cross-entropy with respect to x; parameters get none.

    Summed, not averaged: its sign is the same and an example's value does not depend on the batch
    size.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(x), y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def rs_fgsm(model, x, y, ids, *, eps, alpha, seed, epoch, clip_start=False,
            noise_scale=1.0, clip_ball=True):
    """RS+FGSM (Algorithm 1, lines 26-28) in the model's present mode.

    x [B, C, H, W] uint8 or in [0, 1]; y, ids [B] int64; eps, alpha a float or [B]. Returns
    float32 like x.
    """
    start = ops.rs_start(x, ids, eps, seed, epoch, clip_start, noise_scale)
    grad = input_grad(model, start, y)
    return ops.fgsm_step(x, grad, ids, eps, alpha, seed, epoch, clip_start, noise_scale, clip_ball)


def pgd(model, x, y, ids, *, eps, alpha, steps, restarts=1, seed=0, epoch=0):
    """PGD in the model's present mode: the restart that breaks x first, else that of highest loss.

    As in fast_adversarial's evaluate_pgd each restart begins uniformly in ball and box, and an
    example stays where it is once misclassified; here later restarts leave it alone too. Shapes
    as in `rs_fgsm`.
    """
    pixels = ops.pixels(x)
    best, best_loss = pixels.clone(), torch.full(y.shape, -torch.inf, device=y.device)
    todo = torch.arange(len(x), device=x.device)  # the examples that no restart has broken yet
    for restart in range(restarts):
        eps_i, alpha_i = (v[todo] if torch.is_tensor(v) else v for v in (eps, alpha))
        centre, draw = pixels[todo], epoch * restarts + restart
        start = ops.rs_start(centre, ids[todo], eps_i, seed, draw, clip_start=True)
        radius, step = ops.per_example(eps_i, centre), ops.per_example(alpha_i, centre)
        low, high = (centre - radius).clamp(min=0), (centre + radius).clamp(max=1)
        adv, loss, active = _climb(model, start, y[todo], low, high, step, steps)
        better = ~active | (loss > best_loss[todo])
        best[todo[better]], best_loss[todo[better]] = adv[better], loss[better]
        todo = todo[active]
        if len(todo) == 0:
            break
    return best


def _climb(model, adv, y, low, high, alpha, steps):
    """Signed gradient steps within [low, high]: (adv, its loss [B], still right [B])."""
    while True:
        adv = adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(adv)
            loss = F.cross_entropy(logits, y, reduction="none")
            active = logits.argmax(1) == y
            if steps == 0 or not active.any():
                return adv.detach(), loss.detach(), active
            (grad,) = torch.autograd.grad(loss.sum(), adv)
        steps -= 1
        moved = torch.clamp(adv.detach() + alpha * grad.sign(), low, high)
        adv = torch.where(active.view(-1, *[1] * (adv.dim() - 1)), moved, adv.detach())


def pgd_kl(model, x, ids, *, eps, alpha, steps, seed=0, epoch=0):
    """TRADES' inner maximisation (Zhang et al. 2019): KL(model(x) || model(x')) by signed ascent.

    From a uniform start in ball and box, in the model's present mode. Shapes as in `rs_fgsm`.
    """
    pixels, step = ops.pixels(x), ops.per_example(alpha, x)
    radius = ops.per_example(eps, x)
    low, high = (pixels - radius).clamp(min=0), (pixels + radius).clamp(max=1)
    adv = ops.rs_start(pixels, ids, eps, seed, epoch, clip_start=True)
    with torch.no_grad():
        clean = F.log_softmax(model(pixels).float(), 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.kl_div(F.log_softmax(model(adv).float(), 1), clean, log_target=True,
                            reduction="sum")
            (grad,) = torch.autograd.grad(loss, adv)
        adv = torch.clamp(adv.detach() + step * grad.sign(), low, high)
    return adv


class _Found(NamedTuple):
    distance: torch.Tensor  # [B] float32 from x to adv: the largest change (linf) or its length
    target: torch.Tensor  # [B] the class that the model predicts at adv
    iterations: torch.Tensor  # [B] steps taken
    crossed: torch.Tensor  # [B] whether target is another class than y


class DeepFool(_Found):
    """What `deepfool` found for each of B examples; distances in units of [0, 1] pixels.

    Beside its four fields, adv [B, C, H, W] is the point that distance and target belong to.
    """

    adv = None


LEAST = 1e-4  # a step's least length, lest one to a very near boundary be lost in rounding
HALVINGS = 24  # of the last segment: float32 tells no more of its points apart


def deepfool(model, x, y, norm="linf", steps=50, overshoot=0.02, clip=True, classes=None):
    """DeepFool (Moosavi-Dezfooli et al. 2016, Algorithm 2), from y's side of the boundary.

    x [B, C, H, W] uint8 or in [0, 1] (float64 for a float64 model), y [B] int64; norm `linf` or
    `l2`; clip keeps every point in [0, 1]; classes=k looks at y and the k - 1 highest other logits
    of x alone (None: at all). Each step goes to the nearest linearised boundary, their sum
    `overshoot` beyond it; where the class has changed, halving the segment from x finds the
    boundary itself, and adv is just across it. The model is in eval mode meanwhile and left as it
    was.

    Misclassified at once: distance 0, no iterations, crossed. Not crossed within `steps`, or stuck
    where gradients vanish: not crossed, and distance is that of the last point reached; it bounds
    nothing. Where the logits of x are not finite it is NaN. Raises ValueError for another norm.
    """
    x, order = x if x.dtype == torch.float64 else ops.pixels(x), ops.order(norm)
    with frozen(model), torch.no_grad():
        logits = model(x).float()
        others = logits.scatter(1, y[:, None], -torch.inf)
        count = min(classes or logits.shape[1], logits.shape[1])
        rivals = torch.cat([y[:, None], others.topk(count - 1).indices], 1)  # [B, k]
        target = _predicted(logits, y)
        way, iterations = _walk(model, x, y, target, rivals, norm, steps, overshoot, clip)

        ids = ((target != y) & (iterations > 0)).nonzero().flatten()
        low, scale = x.new_zeros(len(ids)), x.new_ones(len(x))
        for _ in range(HALVINGS):
            middle = (low + scale[ids]) / 2
            found = _predicted(model(_along(x[ids], way[ids], middle)), y[ids])
            across = found != y[ids]
            scale[ids] = torch.where(across, middle, scale[ids])
            low = torch.where(across, low, middle)
            target[ids] = torch.where(across, found, target[ids])
    distance = scale * torch.linalg.vector_norm(way.flatten(1), order, 1)
    distance = distance.where(logits.isfinite().all(1), torch.nan)
    found = DeepFool(distance, target, iterations, target != y)
    found.adv = _along(x, way, scale)
    return found


def _walk(model, x, y, target, rivals, norm, steps, overshoot, clip):
    """DeepFool's steps from x, for those neither across nor stuck: (way [B, ...], how many [B]).

    The last point is x + way; its class goes into target [B].
    """
    delta, way = torch.zeros_like(x), torch.zeros_like(x)  # the sum of the steps, and overshot
    iterations, todo = torch.zeros_like(y), (target == y).nonzero().flatten()
    for _ in range(steps):
        if len(todo) == 0:
            break
        centre = x[todo]
        before = _along(centre, way[todo])
        grads, logits = class_grads(model, before, rivals[todo])
        step, _ = ops.deepfool_step(grads, logits, torch.zeros_like(todo), norm, LEAST)
        total = delta[todo] + step
        if clip:  # what leads out of the box is forgotten, so that a pixel can come back at once
            total = total.clamp(-centre, 1 - centre)
        further = total * (1 + overshoot)
        if clip:
            further = further.clamp(-centre, 1 - centre)
        point = _along(centre, further)
        moved = (point != before).flatten(1).any(1) & point.isfinite().flatten(1).all(1)
        todo, point = todo[moved], point[moved]
        delta[todo], way[todo] = total[moved], further[moved]
        iterations[todo] += 1
        target[todo] = _predicted(model(point), y[todo])
        todo = todo[target[todo] == y[todo]]
    return way, iterations


def _along(x, way, scale=None):
    """The points x + scale way, in the box where x + way is; scale is [B], or None for 1."""
    return x + way if scale is None else x + scale.view(-1, *[1] * (x.dim() - 1)) * way


def _predicted(logits, y):
    """The classes [B] of logits [B, K]; y itself where some are not finite: no boundary there."""
    return torch.where(logits.isfinite().all(1), logits.argmax(1), y)


def class_grads(model, x, classes):
    """(gradients [B, k, ...], logits [B, k]) with respect to x of these classes [B, k].

    One backward pass a class: on two CPU cores 10 classes of 500 MNIST images take 103 ms so, 118
    ms under is_grads_batched, 206 ms as one batch of 5,000 (preactresnet18: 263, 328, 721).
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x).float().gather(1, classes)
        grads = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0]
                 for column in logits.unbind(1)]
    return torch.stack(grads, 1), logits.detach()
