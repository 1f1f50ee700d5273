"""Adversarial examples within the l-infinity ball of radius eps and the box [0, 1].

    rs_fgsm    one step from a random start (Wong et al. 2020);
               with noise_scale=2, clip_ball=False N-FGSM (de Jorge et al. 2022),
               with noise_scale=0 plain FGSM (Goodfellow et al. 2015)
    pgd        projected gradient descent with restarts (Madry et al. 2018)

No attack computes a parameter's gradient or leaves a trace on the model.
"""
from contextlib import contextmanager

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
