"""The operators in plain torch, and Philox: what the kernels of csrc/ compute.

OPERATORS has of each operator its schema, its reference, and a fake that gives empty outputs.
Each reference has the operator's name and arguments; ops.py explains them.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad as zero_pad

MASK = 0xFFFFFFFF
START, CROP = 0, 1  # the fourth word of the counter: a stream of its own for each purpose


def philox4x32(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor
               ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four tensors of 32-bit words (as int64) for broadcastable counter words."""
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(10):
        # An int64 product wraps, which leaves the unsigned product's bits: both halves are exact.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK
        c2, c3 = (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def uniform(ids: Tensor, size: int, seed: int, epoch: int) -> Tensor:
    """Uniform on [-1, 1): 2u - 1 with u = (bits >> 8) 2^-24, exact in float32. [B, size]"""
    block = torch.arange((size + 3) // 4, device=ids.device)[None]
    words = philox4x32(seed, block, ids[:, None] & MASK, torch.full_like(block, epoch & MASK),
                       torch.full_like(block, START))
    bits = torch.stack(words, dim=-1).flatten(1)[:, :size]  # from [B, blocks, 4]
    return (bits >> 8).float() * 2**-23 - 1


def per_example(value: float | Tensor, x: Tensor) -> Tensor:
    """A float or a [B] tensor as float32 that broadcasts over x [B, ...]."""
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=torch.float32, device=x.device)  # waits for no GPU
    value = value.to(x.device, torch.float32)
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (x.dim() - 1))


def pixels(x: Tensor) -> Tensor:
    """x as float32 in [0, 1]: uint8 is divided by 255."""
    if x.dtype != torch.uint8:
        return x.float()
    # By a tensor: for a number, PyTorch on CUDA multiplies by its inverse, which may be a bit off.
    return x.float() / torch.full((), 255.0, device=x.device)


def start_delta(x: Tensor, ids: Tensor, radius: Tensor, seed: int, epoch: int, clip_start: bool,
                noise_scale: float) -> Tensor:
    """The random start of RS+FGSM less x [B, ...], a float32 tensor in [0, 1]."""
    scale = torch.tensor(noise_scale, dtype=torch.float32)
    noise = radius * scale * uniform(ids, math.prod(x.shape[1:]), seed, epoch).view(x.shape)
    return torch.clamp(noise, -x, 1 - x) if clip_start else noise


def empty_like_pixels(x: Tensor) -> Tensor:
    """An empty output: float32 and contiguous for uint8, else of x's type and layout."""
    return (x.new_empty(x.shape, dtype=torch.float32) if x.dtype == torch.uint8
            else torch.empty_like(x))


def rs_start(x: Tensor, ids: Tensor, eps: float, eps_i: Tensor | None, seed: int, epoch: int,
             clip_start: bool, noise_scale: float) -> Tensor:
    centre, radius = pixels(x), per_example(eps if eps_i is None else eps_i, x)
    delta = start_delta(centre, ids, radius, seed, epoch, clip_start, noise_scale)
    return empty_like_pixels(x).copy_(centre + delta)


def fgsm_step(x: Tensor, grad: Tensor, ids: Tensor, eps: float, eps_i: Tensor | None,
              alpha: float, alpha_i: Tensor | None, seed: int, epoch: int, clip_start: bool,
              noise_scale: float, clip_ball: bool) -> Tensor:
    centre, radius = pixels(x), per_example(eps if eps_i is None else eps_i, x)
    delta = start_delta(centre, ids, radius, seed, epoch, clip_start, noise_scale)
    delta = delta + per_example(alpha if alpha_i is None else alpha_i, x) * grad.float().sign()
    if clip_ball:
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    return empty_like_pixels(x).copy_((centre + delta).clamp(0, 1))


def augment(images: Tensor, ids: Tensor, seed: int, epoch: int, pad: int, flip: bool,
            channels_last: bool, rows: Tensor | None = None) -> Tensor:
    rows = ids if rows is None else rows
    torch._assert_async(((rows >= 0) & (rows < len(images))).all(),
                        "augment: an id is outside the images")
    x = images[rows]
    zero = torch.zeros_like(ids)
    dy, dx, side, _ = philox4x32(seed, zero, ids & MASK, zero + (epoch & MASK), zero + CROP)
    n, _, h, w = x.shape
    ys = (dy * (2 * pad + 1) >> 32)[:, None] + torch.arange(h, device=x.device)  # [B, H], padded
    xs = torch.arange(w, device=x.device).expand(n, w)
    if flip:
        xs = torch.where((side >> 31 == 1)[:, None], w - 1 - xs, xs)
    xs = (dx * (2 * pad + 1) >> 32)[:, None] + xs
    example = torch.arange(n, device=x.device)[:, None, None]
    x = zero_pad(x, (pad,) * 4)[example, :, ys[:, :, None], xs[:, None]]  # [B, H, W, C]
    # Copied, because one channel is contiguous in either layout, and convolutions tell by strides.
    return empty_batch(images, ids, channels_last).copy_(pixels(x.permute(0, 3, 1, 2)))


def empty_batch(images: Tensor, ids: Tensor, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = ids.shape[0], *images.shape[1:]
    return torch.empty(shape, device=images.device, memory_format=layout)


def cross_entropy_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    torch._assert_async(((labels >= 0) & (labels < logits.shape[1])).all(),
                        "cross_entropy_scores: a label is no class")
    x = logits.double()
    best = logits.argmax(1, keepdim=True)
    top, picked = x.gather(1, best), x.gather(1, labels[:, None])
    rest = (x - top).exp().scatter(1, best, 0.0).sum(1)
    correct = (best[:, 0] == labels) & ~top[:, 0].isnan()  # argmax takes a NaN for the largest
    return (rest.log1p() + (top - picked)[:, 0]).float(), correct


def select_kept(scores: Tensor, low: int, high: int, centre: float | None
                ) -> tuple[Tensor, Tensor]:
    """(sorted ids that stay, how many scores are not finite)."""
    if centre is not None:
        scores = (scores.double() - centre).abs().float()
    n, bad = len(scores), (~torch.isfinite(scores)).sum()
    # Sorting reversed ids stably puts the highest id first among equals: it is dropped first.
    ascending = n - 1 - torch.sort(scores.flip(0), stable=True).indices
    rest = ascending[low:].sort().values
    descending = (len(rest) - 1) - torch.sort(-scores[rest].flip(0), stable=True).indices
    return rest[descending[high:]].sort().values, bad


def conv_input_grad(grad: Tensor, weight: Tensor, height: int, width: int, stride: int,
                    padding: int) -> Tensor:
    side = weight.shape[2]
    rest = [(length + 2 * padding - side) % stride for length in (height, width)]
    return torch.nn.functional.conv_transpose2d(
        grad.permute(0, 3, 1, 2), weight, None, stride, padding, rest)


def batch_norm_relu(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                    var: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if mean is None or var is None:
        var, mean = torch.var_mean(x.float(), (0, 1, 2), correction=0)
    scale = weight * (var + eps).rsqrt()
    return ((x * scale + (bias - mean * scale)).relu().to(x.dtype), mean.clone(), var.clone())


def batch_norm_relu_grad(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
                         var: Tensor, eps: float, batch: bool) -> tuple[Tensor, Tensor, Tensor]:
    rate = (var + eps).rsqrt()
    rows = (0, 1, 2)
    centred = x.float() - mean
    scale = weight * rate
    grad = torch.where(x * scale + (bias - mean * scale) <= 0, 0, grad.float())
    weights, biases = (grad * centred).sum(rows) * rate, grad.sum(rows)
    if batch:
        n = x.numel() // x.shape[-1]
        grad = grad - biases / n - centred * rate * weights / n
    return (scale * grad).to(x.dtype), weights, biases


class Operator(NamedTuple):
    schema: str
    reference: Callable
    fake: Callable


OPERATORS = {
    "rs_start": Operator(
        "(Tensor x, Tensor ids, float eps, Tensor? eps_i, int seed, int epoch, bool clip_start, "
        "float noise_scale) -> Tensor",
        rs_start, lambda x, *_: empty_like_pixels(x)),
    "fgsm_step": Operator(
        "(Tensor x, Tensor grad, Tensor ids, float eps, Tensor? eps_i, float alpha, "
        "Tensor? alpha_i, int seed, int epoch, bool clip_start, float noise_scale, "
        "bool clip_ball) -> Tensor",
        fgsm_step, lambda x, *_: empty_like_pixels(x)),
    "augment": Operator(
        "(Tensor images, Tensor ids, int seed, int epoch, int pad, bool flip, "
        "bool channels_last, Tensor? rows=None) -> Tensor",
        augment, lambda images, ids, seed, epoch, pad, flip, channels_last, rows=None:
            empty_batch(images, ids, channels_last)),
    "cross_entropy_scores": Operator(
        "(Tensor logits, Tensor labels) -> (Tensor, Tensor)",
        cross_entropy_scores, lambda logits, labels: (
            logits.new_empty(logits.shape[0], dtype=torch.float32),
            logits.new_empty(logits.shape[0], dtype=torch.bool))),
    "select_kept": Operator(
        "(Tensor scores, int low, int high, float? centre) -> (Tensor, Tensor)",
        select_kept, lambda scores, low, high, centre: (
            scores.new_empty(scores.shape[0] - low - high, dtype=torch.int64),
            scores.new_empty((), dtype=torch.int64))),
    "conv_input_grad": Operator(
        "(Tensor grad, Tensor weight, int height, int width, int stride, int padding) -> Tensor",
        conv_input_grad,
        lambda grad, weight, h, w, *_: grad.new_empty((grad.shape[0], 1, h, w))),
    "batch_norm_relu": Operator(
        "(Tensor x, Tensor weight, Tensor bias, Tensor? mean, Tensor? var, float eps) -> "
        "(Tensor, Tensor, Tensor)",
        batch_norm_relu, lambda x, weight, *_: (
            torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight))),
    "batch_norm_relu_grad": Operator(
        "(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps, "
        "bool batch) -> (Tensor, Tensor, Tensor)",
        batch_norm_relu_grad, lambda grad, x, weight, *_: (
            torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight))),
}
