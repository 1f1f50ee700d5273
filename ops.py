"""The operators of adversarial training on pruned data, each in one pass where a kernel serves it.

Every operator is declared once here: its schema, its plain-torch reference and its shape-only
fake. Callers write `ops.rs_start(...)`. All randomness is counter-based (Philox4x32-10, Salmon et
al. 2011): key = seed, counter = (element // 4, example id, epoch, stream). A value therefore
depends on the example it belongs to and never on its place in a batch, the batch size, the
process or the device.
"""
import torch

MASK = 0xFFFFFFFF
START, CROP = 0, 1  # the fourth counter word: one stream a purpose


def philox4x32(seed, c0, c1, c2, c3):
    """Philox4x32-10: four tensors of 32-bit words (as int64) for broadcastable counter words.

    seed is the 64-bit key. Checked against the Random123 known answers in tests/test_ops.py.
    """
    k0, k1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(10):
        # An int64 product wraps, which leaves the unsigned product's bits: both halves are exact.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK
        c2, c3 = (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def _uniform(ids, per_example, seed, epoch):
    """Uniform on [-1, 1): 2u - 1 with u = (bits >> 8) 2^-24, exact in float32. [B, per_example]"""
    block = torch.arange((per_example + 3) // 4, device=ids.device)[None]
    words = philox4x32(seed, block, ids[:, None] & MASK, torch.full_like(block, epoch),
                       torch.full_like(block, START))
    bits = torch.stack(words, dim=-1).flatten(1)[:, :per_example]  # from [B, blocks, 4]
    return (bits >> 8).float() * 2**-23 - 1


def per_example(value, x):
    """A float or a [B] tensor as float32 that broadcasts over x [B, ...]."""
    value = torch.as_tensor(value, dtype=torch.float32, device=x.device)
    return value if value.dim() == 0 else value.reshape(-1, *[1] * (x.dim() - 1))


def pixels(x):
    """x as float32 in [0, 1]: uint8 is divided by 255."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _delta(x, ids, eps, seed, epoch, clip_start, noise_scale):
    radius = per_example(eps, x) * torch.tensor(noise_scale, dtype=torch.float32)
    noise = radius * _uniform(ids, x[:1].numel(), seed, epoch).view(x.shape)
    return torch.clamp(noise, -x, 1 - x) if clip_start else noise


def rs_start(x, ids, eps, seed, epoch, clip_start=False, noise_scale=1.0):
    """The random start of RS+FGSM: x + noise_scale U(-eps_i, eps_i) (Algorithm 1, line 26).

    x [B, ...] uint8 (read as x / 255) or float in [0, 1]; ids [B] int64; eps a float or [B]
    float32, in units of [0, 1] pixels; clip_start keeps the start in [0, 1]. Returns float32, or
    x's own float type.
    """
    centre = pixels(x)
    start = centre + _delta(centre, ids, eps, seed, epoch, clip_start, noise_scale)
    return start if x.dtype == torch.uint8 else start.to(x.dtype)


def fgsm_step(x, grad, ids, eps, alpha, seed, epoch, clip_start=False, noise_scale=1.0,
              clip_ball=True):
    """The step of RS+FGSM from the start that `rs_start` gives for the same arguments (27-28).

    delta = clip(start - x + alpha sign(grad), -eps_i, eps_i), then x + delta clipped to [0, 1];
    sign(0) = sign(NaN) = 0. alpha is a float or [B]. N-FGSM (de Jorge et al. 2022, Algorithm 1) is
    noise_scale=2, clip_ball=False. Shapes and types as in `rs_start`, grad as the start.
    """
    centre = pixels(x)
    delta = _delta(centre, ids, eps, seed, epoch, clip_start, noise_scale)
    delta = delta + per_example(alpha, x) * torch.sign(grad.float())
    if clip_ball:
        radius = per_example(eps, x)
        delta = torch.minimum(torch.maximum(delta, -radius), radius)
    adv = (centre + delta).clamp(0, 1)
    return adv if x.dtype == torch.uint8 else adv.to(x.dtype)


def augment(images, ids, seed, epoch, pad=0, flip=False):
    """Images [N, C, H, W] uint8 of these ids [B], zero-padded, cropped, flipped; float32 / 255.

    Every offset of the crop in 0..2 pad, and each side of the flip, is as likely as the others.
    """
    x = images[ids]
    if pad or flip:
        zero = torch.zeros_like(ids)
        dy, dx, side, _ = philox4x32(seed, zero, ids & MASK, zero + epoch, zero + CROP)
        n, _, h, w = x.shape
        shift = 2 * pad + 1
        rows = (dy * shift >> 32)[:, None] + torch.arange(h, device=x.device)  # [B, H], padded
        cols = torch.arange(w, device=x.device).expand(n, w)
        if flip:
            cols = torch.where((side >> 31 == 1)[:, None], w - 1 - cols, cols)
        cols = (dx * shift >> 32)[:, None] + cols
        x = torch.nn.functional.pad(x, (pad,) * 4)
        x = x[torch.arange(n, device=x.device)[:, None, None], :, rows[:, :, None], cols[:, None]]
        x = x.permute(0, 3, 1, 2).contiguous()  # [B, H, W, C] -> [B, C, H, W]
    return pixels(x)


def cross_entropy_scores(logits, labels):
    """(loss [B] float32, correct [B] bool) of logits [B, K], any float type, and labels [B]."""
    loss = torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")
    return loss, logits.argmax(1) == labels


def select_kept(scores, drop, how):
    """Sorted ids [n - drop] that stay when `drop` of scores [n] float32 go (Algorithm 1, 8-20).

    how: `high` or `low` drop that tail, `low+high` half from each (the odd one from the high
    tail), `middle` drops those nearest the mean score. Of equal scores at a cut the lowest ids
    stay. Raises ValueError for non-finite scores, drop outside [0, n] or an unknown `how`.
    """
    if bad := int((~torch.isfinite(scores)).sum()):
        raise ValueError(f"{bad} of {len(scores)} scores are not finite")
    if not 0 <= drop <= len(scores):
        raise ValueError(f"cannot drop {drop} of {len(scores)} examples")
    if how == "middle":
        scores, how = (scores.double() - scores.double().mean()).abs().float(), "low"
    low = {"low": drop, "high": 0, "low+high": drop // 2}
    if how not in low:
        raise ValueError(f"unknown strategy {how!r}: choose high, low, low+high or middle")
    n, low = len(scores), low[how]
    # Sorting reversed ids stably puts the highest id first among equals: it is dropped first.
    ascending = n - 1 - torch.sort(scores.flip(0), stable=True).indices
    rest = ascending[low:].sort().values
    descending = (len(rest) - 1) - torch.sort(-scores[rest].flip(0), stable=True).indices
    return rest[descending[drop - low:]].sort().values
