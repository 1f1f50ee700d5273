"""Adversarial examples: within an l-infinity ball, or the nearest one at any distance.

Within the l-infinity ball of radius eps and the box [0, 1]:

    rs_fgsm    one step from a random start (Wong et al. 2020);
               with noise_scale=2, clip_ball=False N-FGSM (de Jorge et al. 2022),
               with noise_scale=0 plain FGSM (Goodfellow et al. 2015)
    pgd        projected gradient descent with restarts (Madry et al. 2018)
    pgd_kl     PGD on TRADES' divergence (Zhang et al. 2019)

Without a budget:

    deepfool   DeepFool in the l-infinity or l2 norm (Moosavi-Dezfooli et al. 2016)

Each checks images, labels and budgets by `checked`. A network of half precision gets images of its
own type; its loss is computed in float32.

rs_fgsm, pgd and pgd_kl run the model in the mode it is in. In train mode its batch norm statistics
move. Inside `with frozen(model):` parameters get no gradients, which saves memory; inside
`with evaluating(model):` the model is in eval mode too.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune import ops


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block no parameter of the model requires a gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad = False
    try:
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad = True


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block the model is in eval mode and frozen. Modes and flags are restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with frozen(model.eval()):
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


IMAGES = ("images must be uint8, or floats in [0, 1]: divide them by 255, and normalise inside "
          "the model (advprune.models.Normalize)")


def checked(x: Tensor, y: Any = None, eps: float | Tensor = 0.0, alpha: float | Tensor = 0.0
            ) -> tuple[Tensor, Any, float | Tensor, float | Tensor]:
    """(x, y, eps, alpha) as an attack takes them: x of uint8 or float32 or more, y of int64.

    x [B, ...] uint8, or floats in [0, 1]; y as in `class_labels`, or None; eps in [0, 1] and alpha
    in [0, 2], each a number or one for each image. Raises ValueError for all else, and in
    torch.inference_mode. Values on a GPU are checked there, without a wait: it prints the
    sentence, and the next call that waits for it raises.
    """
    _refuse_inference_mode()
    x = in_range(x)
    y = y if y is None else class_labels(y, len(x))
    eps = _budget("eps", eps, x, 1, "is the budget in [0, 1] pixels: give 8/255, not 8")
    # No step is longer than from one end of the largest ball to the other.
    alpha = _budget("alpha", alpha, x, 2, "is the step in [0, 1] pixels: give 10/255, not 10")
    return x, y, eps, alpha


def in_range(x: Any) -> Tensor:
    """The images x as uint8 or float32 or more. Raises ValueError unless they are in [0, 1]."""
    x = torch.as_tensor(x).detach()
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        raise ValueError(f"{IMAGES}; they are {x.dtype}")
    _require(x, 1, IMAGES)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def class_labels(y: Any, n: int) -> Tensor:
    """The labels y [n] as int64. Raises ValueError unless they are n whole numbers from 0 on.

    On a GPU they may be negative: that check would wait. The loss refuses most of them.
    """
    y = torch.as_tensor(y)
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise ValueError(f"labels must be N whole numbers, not a tensor of shape {list(y.shape)} "
                         f"and type {y.dtype}")
    if len(y) != n:
        raise ValueError(f"there are {n} images but {len(y)} labels; give one label for each "
                         "image")
    y = y.long()
    if not y.is_cuda and (y < 0).any():
        raise ValueError(f"the label {y.min()} is negative; classes begin with 0")
    return y


def _refuse_inference_mode():
    if torch.is_inference_mode_enabled():
        raise ValueError("attacks need gradients, which torch.inference_mode forbids; call them "
                         "outside of it, or within torch.no_grad")


def _budget(name, value, x, most, meaning):
    """The value as a float, or [B] on the device of x."""
    if not hasattr(value, "__len__"):
        if not 0 <= value <= most:
            raise ValueError(f"{name} {meaning}")
        return float(value)
    value = torch.as_tensor(value)
    if value.numel() not in (1, len(x)):
        raise ValueError(f"{name} must be one number, or one for each of the {len(x)} images, not "
                         f"a tensor of shape {list(value.shape)}")
    value = value.to(x.device).flatten().expand(len(x))
    _require(value, most, f"{name} {meaning}")
    return value


def _require(value, most, message):
    """Raise ValueError unless all of the tensor is in [0, most]. NaN is not."""
    if value.numel() == 0:
        return
    low, high = value.aminmax()
    fine = (low >= 0) & (high <= most)
    if value.is_cuda:
        torch._assert_async(fine, message)
    elif not fine:
        raise ValueError(message)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The logits [B, K], in float32 or more, of x [B, ...] in the type of the model's weights."""
    weights = (p.dtype for p in model.parameters() if p.is_floating_point())
    logits = model(x.to(next(weights, x.dtype)))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_classes(y: Tensor, logits: Tensor) -> None:
    """Raise ValueError if a label of y [B] is no class of logits [B, K].

    On a GPU this would wait; there the loss refuses them.
    """
    if not y.is_cuda and (y >= logits.shape[1]).any():
        raise ValueError(f"the label {y.max()} is no class: the network gives {logits.shape[1]} "
                         "logits, for classes that begin with 0")


def predicted(logits: Tensor) -> Tensor:
    """The classes [B] int64 of logits [B, K]; -1, which is no class, if they predict none.

    That is if one of them is NaN or +inf, or all are -inf. A class of -inf is masked.
    """
    highest, classes = logits.max(1)  # NaN counts as the highest
    return torch.where(highest.isfinite(), classes, -1)


def input_grad(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient [B, ...] of the summed cross-entropy with respect to x; parameters get none.

    x is any point, inside the box or not. A sum has the sign of the mean, and keeps an example's
    gradient independent of the batch size.
    """
    _refuse_inference_mode()
    x, y = x.detach().requires_grad_(), class_labels(y, len(x))
    with torch.enable_grad():
        logits = logits_of(model, x)
        check_classes(y, logits)
        loss = F.cross_entropy(logits, y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def rs_fgsm(model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, *, eps: float | Tensor,
            alpha: float | Tensor, seed: int = 0, epoch: int = 0, clip_start: bool = False,
            noise_scale: float = 1.0, clip_ball: bool = True) -> Tensor:
    """RS+FGSM (Algorithm 1, lines 26-28): the adversarial examples [B, C, H, W], float32.

    x [B, C, H, W] uint8 or in [0, 1]; y, ids [B] whole numbers; eps, alpha a float or one value
    for each example [B], in [0, 1] pixels. seed, epoch and ids choose the noise. Raises what
    `checked` does.
    """
    x, _, eps, alpha = checked(x, None, eps, alpha)
    x = x if x.dtype == torch.uint8 else x.float()
    start = ops.rs_start(x, ids, eps, seed, epoch, clip_start, noise_scale)
    grad = input_grad(model, start, y)
    return ops.fgsm_step(x, grad, ids, eps, alpha, seed, epoch, clip_start, noise_scale, clip_ball)


def pgd(model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, *, eps: float | Tensor,
        alpha: float | Tensor, steps: int, restarts: int = 1, seed: int = 0, epoch: int = 0
        ) -> Tensor:
    """PGD: for each example the first restart that breaks it, else the one of highest loss.

    As in fast_adversarial's evaluate_pgd, each restart begins uniformly in ball and box, and an
    example stops moving once it is misclassified. Later restarts skip examples that are broken,
    unlike there. Arguments, result and errors as in `rs_fgsm`; and ValueError for fewer than 0
    steps or 1 restart.
    """
    if steps < 0 or restarts < 1:
        raise ValueError(f"pgd takes 0 steps or more and 1 restart or more, not {steps} and "
                         f"{restarts}")
    x, y, eps, alpha = checked(x, y, eps, alpha)
    pixels = ops.pixels(x)
    best, best_loss = pixels.clone(), torch.full(y.shape, -torch.inf, device=y.device)
    todo = torch.arange(len(x), device=x.device)  # the examples that no restart has broken yet
    for restart in range(restarts):
        eps_i, alpha_i = (v[todo] if torch.is_tensor(v) else v for v in (eps, alpha))
        centre, draw = pixels[todo], epoch * restarts + restart
        start = ops.rs_start(centre, ids[todo], eps_i, seed, draw, clip_start=True)
        radius, step = ops.per_example(eps_i, centre), ops.per_example(alpha_i, centre)
        low, high = (centre - radius).clamp(min=0), (centre + radius).clamp(max=1)
        adv, loss, active = _climb(model, start, y[todo], low, high, step, steps, restarts > 1)
        if restarts == 1:
            return adv
        better = ~active | (loss > best_loss[todo])
        best[todo[better]], best_loss[todo[better]] = adv[better], loss[better]
        todo = todo[active]
        if len(todo) == 0:
            break
    return best


def _climb(model, adv, y, low, high, alpha, steps, judge):
    """Signed gradient steps within [low, high]: adv, and, if judged, (its loss, right) [B]."""
    while True:
        if steps == 0 and not judge:
            return adv.detach(), None, None
        adv = adv.detach().requires_grad_()
        with torch.enable_grad():
            logits = logits_of(model, adv)
            check_classes(y, logits)
            loss = F.cross_entropy(logits, y, reduction="none")
            active = predicted(logits) == y
            if steps == 0 or not active.any():
                return adv.detach(), loss.detach().float(), active
            (grad,) = torch.autograd.grad(loss.sum(), adv)
        steps -= 1
        moved = torch.clamp(adv.detach() + alpha * grad.sign(), low, high)
        adv = torch.where(active.view(-1, *[1] * (adv.dim() - 1)), moved, adv.detach())


def pgd_kl(model: nn.Module, x: Tensor, ids: Tensor, *, eps: float | Tensor,
           alpha: float | Tensor, steps: int, seed: int = 0, epoch: int = 0) -> Tensor:
    """TRADES' inner maximisation (Zhang et al. 2019): KL(model(x) || model(x')) by signed ascent.

    The start is uniform in ball and box. Arguments, result and errors as in `rs_fgsm`.
    """
    x, _, eps, alpha = checked(x, None, eps, alpha)
    pixels, step = ops.pixels(x), ops.per_example(alpha, x)
    radius = ops.per_example(eps, x)
    low, high = (pixels - radius).clamp(min=0), (pixels + radius).clamp(max=1)
    adv = ops.rs_start(pixels, ids, eps, seed, epoch, clip_start=True)
    with torch.no_grad():
        clean = F.log_softmax(logits_of(model, pixels), 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        with torch.enable_grad():
            loss = F.kl_div(F.log_softmax(logits_of(model, adv), 1), clean, log_target=True,
                            reduction="sum")
            (grad,) = torch.autograd.grad(loss, adv)
        adv = torch.clamp(adv.detach() + step * grad.sign(), low, high)
    return adv


class DeepFool(NamedTuple):
    """What `deepfool` found for each of B examples. Distances are in units of [0, 1] pixels."""

    distance: Tensor  # [B] float32 from x to adv: the largest change (linf) or its length (l2)
    target: Tensor  # [B] the class that the model predicts at adv
    iterations: Tensor  # [B] steps taken
    crossed: Tensor  # [B] whether target differs from y
    adv: Tensor  # [B, C, H, W] the point of this distance and target


LEAST = 1e-4  # the smallest step: a shorter one could be lost in rounding
HALVINGS = 24  # of the last segment: float32 distinguishes no more of its points


def deepfool(model: nn.Module, x: Tensor, y: Tensor, norm: str = "linf", steps: int = 50,
             overshoot: float = 0.02, clip: bool = True, classes: int | None = None) -> DeepFool:
    """DeepFool (Moosavi-Dezfooli et al. 2016, Algorithm 2): from x across the boundary of class y.

    x [B, C, H, W] uint8 or in [0, 1] (float64 for a float64 model), y [B]; norm `linf` or
    `l2`; clip keeps every point in [0, 1]; classes=k considers y and the k - 1 highest other
    logits of x (None: all). Each step goes to the nearest linearised boundary; the sum of the
    steps is lengthened by `overshoot`. When the class has changed, bisection of the segment from x
    finds the boundary itself, and adv lies just beyond it. The model is in eval mode meanwhile.

    A misclassified example has distance 0 and no iterations, and counts as crossed. An example
    that does not cross within `steps`, or whose gradients vanish, does not count as crossed. Its
    distance is that of the last point reached, which is no bound on the margin. The distance is
    NaN if the logits of x predict no class. Raises ValueError for another norm, and what
    `checked` does.
    """
    x, y, *_ = checked(x, y)
    x, order = x if x.dtype == torch.float64 else ops.pixels(x), norm_order(norm)
    with evaluating(model), torch.no_grad():
        logits = logits_of(model, x)
        check_classes(y, logits)
        others = logits.scatter(1, y[:, None], -torch.inf)
        count = min(classes or logits.shape[1], logits.shape[1])
        rivals = torch.cat([y[:, None], others.topk(count - 1).indices], 1)  # [B, k]
        target = _target(logits, y)
        way, iterations = _walk(model, x, y, target, rivals, norm, steps, overshoot, clip)

        ids = ((target != y) & (iterations > 0)).nonzero().flatten()
        low, scale = x.new_zeros(len(ids)), x.new_ones(len(x))
        for _ in range(HALVINGS):
            middle = (low + scale[ids]) / 2
            found = _target(logits_of(model, _along(x[ids], way[ids], middle)), y[ids])
            across = found != y[ids]
            scale[ids] = torch.where(across, middle, scale[ids])
            low = torch.where(across, low, middle)
            target[ids] = torch.where(across, found, target[ids])
    distance = scale * torch.linalg.vector_norm(way.flatten(1), order, 1)
    distance = distance.where(predicted(logits) >= 0, torch.nan)
    return DeepFool(distance, target, iterations, target != y, _along(x, way, scale))


def norm_order(norm: str) -> float:
    """The p of the norm `linf` or `l2`. Raises ValueError for any other norm."""
    if norm not in ("linf", "l2"):
        raise ValueError(f"unknown norm {norm!r}: choose linf or l2")
    return torch.inf if norm == "linf" else 2.0


def _walk(model, x, y, target, rivals, norm, steps, overshoot, clip):
    """DeepFool's steps from x: (way [B, ...], how many [B]). The last points are x + way.

    Their classes go into target [B]. An example that crossed or no longer moves is left alone.
    """
    # The sum of the steps, and that sum with overshoot.
    delta, way = torch.zeros_like(x), torch.zeros_like(x)
    iterations, todo = torch.zeros_like(y), (target == y).nonzero().flatten()
    for _ in range(steps):
        if len(todo) == 0:
            break
        centre = x[todo]
        before = _along(centre, way[todo])
        grads, logits = class_grads(model, before, rivals[todo])
        total = delta[todo] + nearest_boundary(grads, logits, norm)
        if clip:  # so that a pixel at the edge of the box can move back at the next step
            total = total.clamp(-centre, 1 - centre)
        further = total * (1 + overshoot)
        if clip:
            further = further.clamp(-centre, 1 - centre)
        point = _along(centre, further)
        moved = (point != before).flatten(1).any(1) & point.isfinite().flatten(1).all(1)
        todo, point = todo[moved], point[moved]
        delta[todo], way[todo] = total[moved], further[moved]
        iterations[todo] += 1
        target[todo] = _target(logits_of(model, point), y[todo])
        todo = todo[target[todo] == y[todo]]
    return way, iterations


def nearest_boundary(grads: Tensor, logits: Tensor, norm: str) -> Tensor:
    """DeepFool's step to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, eq. 8-9).

    grads [B, K, ...], the gradients of logits [B, K], first those of the class to leave; norm
    `linf` or `l2`. With w_k = grads_k - grads_0 the boundary to class k is |f_k - f_0| / ||w_k||
    away, in the dual norm (l1, l2). The step [B, ...] is LEAST long or longer. A class whose w_k
    vanishes or is not finite is out of reach, as w_0 does; if all are, the step is 0.
    """
    slopes = (grads - grads[:, :1]).flatten(2)  # [B, K, D]
    size = torch.linalg.vector_norm(slopes, 2 if norm == "l2" else 1, 2)  # [B, K]
    away = (logits - logits[:, :1]).abs() / size
    away[~((size > 0) & size.isfinite() & away.isfinite())] = torch.inf
    nearest, target = away.min(1)
    reached, rows = nearest.isfinite(), torch.arange(len(target), device=target.device)
    slope, size = slopes[rows, target], size[rows, target].where(reached, 1.0)  # [B, D], [B]
    length = nearest.clamp(min=LEAST)[:, None]
    step = slope.sign() * length if norm == "linf" else slope * (length / size[:, None])
    return torch.where(reached[:, None], step, 0.0).view_as(grads[:, 0])


def _along(x, way, scale=None):
    """The points x + scale way; scale is [B], or None for 1."""
    return x + way if scale is None else x + scale.view(-1, *[1] * (x.dim() - 1)) * way


def _target(logits, y):
    """The classes [B] of logits [B, K], and y if they predict none: there is no boundary."""
    classes = predicted(logits)
    return torch.where(classes < 0, y, classes)


def class_grads(model: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """(gradients [B, k, ...] with respect to x, logits [B, k]) of these classes [B, k].

    One backward pass for each class; is_grads_batched and larger batches were slower on a CPU.
    """
    _refuse_inference_mode()
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = logits_of(model, x).float().gather(1, classes)
        grads = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0]
                 for column in logits.unbind(1)]
    return torch.stack(grads, 1), logits.detach()
