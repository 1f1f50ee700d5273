"""python -m benchmarks kernels: each operator beside a copy and its alternatives. All are ratios.

The alternatives are eager torch as fast_adversarial writes it, torch.compile of the same lines,
and for the selection torch.topk, torch.sort and numpy.argpartition.
"""
import numpy as np
import torch
import torch.nn.functional as F

from advprune import ops
from benchmarks.timing import median_us

BATCHES = [(128, 3, 32, 32), (512, 1, 28, 28), (2048, 3, 32, 32), (20834, 3, 32, 32)]  # to 64 M
NORMS = [(128, 16, 32, 32), (128, 64, 16, 16)]
SELECTIONS = [50_000, 1_000_000, 10_000_000, 100_000_000]
EPS, ALPHA = 8 / 255, 10 / 255


def size_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


# --- the alternatives: fast_adversarial's lines, as eager torch and compiled

def eager_start(x):
    return x + torch.empty_like(x).uniform_(-EPS, EPS)


def eager_step(x, start, grad):
    delta = torch.clamp(start - x + ALPHA * torch.sign(grad), -EPS, EPS)
    return torch.clamp(x + delta, 0, 1)


def eager_both(x, grad):
    return eager_step(x, eager_start(x), grad)


def eager_scores(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels


def eager_augment(images, ids, seed, epoch, pad=0, flip=False, channels_last=False, rows=None):
    x = images[ids if rows is None else rows].float() / 255
    if pad:
        n, _, h, w = x.shape
        dy, dx = torch.randint(2 * pad + 1, (2, n, 1), device=x.device)
        ys, xs = dy + torch.arange(h, device=x.device), dx + torch.arange(w, device=x.device)
        example = torch.arange(n, device=x.device)[:, None, None]
        x = F.pad(x, (pad,) * 4)[example, :, ys[:, :, None], xs[:, None]].permute(0, 3, 1, 2)
    if flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def eager_select(scores, drop, how):
    return torch.topk(scores, len(scores) - drop, largest=how == "low").indices.sort().values


def rows_of_batches(device):
    """One row an operator and size: its time and bytes, and its alternatives' times."""
    largest = 0.5 * (torch.cuda.get_device_properties(device).total_memory
                     if device.type == "cuda" else 4e9)
    compiled_both = torch.compile(eager_both)
    for shape in [s for s in BATCHES if 24 * np.prod(s) < largest]:
        x, ids = torch.rand(shape, device=device), torch.arange(shape[0], device=device)
        grad, images = torch.randn_like(x), (x * 255).to(torch.uint8)
        logits, labels = torch.randn(shape[0], 10, device=device), ids % 10
        copy = size_of(x, x) / median_us(x.clone, device)
        start = ops.rs_start(x, ids, EPS, 0, 0)
        calls = {
            "rs_start": (lambda: ops.rs_start(x, ids, EPS, 0, 0), size_of(x, start),
                         {"eager": lambda: eager_start(x)}),
            "fgsm_step": (lambda: ops.fgsm_step(x, grad, ids, EPS, ALPHA, 0, 0),
                          size_of(x, grad, x), {"eager": lambda: eager_step(x, start, grad)}),
            "rs_start + fgsm_step": (
                lambda: (ops.rs_start(x, ids, EPS, 0, 0),
                         ops.fgsm_step(x, grad, ids, EPS, ALPHA, 0, 0)),
                size_of(x, start, x, grad, x),
                {"eager": lambda: eager_both(x, grad), "compile": lambda: compiled_both(x, grad)}),
            "augment": (lambda: ops.augment(images, ids, 0, 0, 4, True), size_of(images, x),
                        {"eager": lambda: eager_augment(images, ids, 0, 0, 4, True)}),
            "cross_entropy_scores": (lambda: ops.cross_entropy_scores(logits, labels),
                                     size_of(logits, labels) + 5 * len(ids),
                                     {"eager": lambda: eager_scores(logits, labels)}),
        }
        if shape[1] > 1:  # with one channel, both layouts are one
            last, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
            calls |= {
                "rs_start, channels last": (lambda: ops.rs_start(last, ids, EPS, 0, 0),
                                            size_of(x, start), {}),
                "fgsm_step, channels last": (
                    lambda: ops.fgsm_step(last, slope, ids, EPS, ALPHA, 0, 0),
                    size_of(x, grad, x), {})}
        for name, (call, moved, others) in calls.items():
            yield row_of(name, x.numel(), call, moved, others, copy, device)


def rows_of_norms(device):
    """Forward and backward of batch normalisation with its ReLU, in channels-last."""
    if device.type != "cpu":
        return  # there it is PyTorch's own
    op = torch.ops.advprune
    for shape in NORMS:
        for dtype in (torch.float32, torch.bfloat16):
            x, grad = torch.randn((2, *shape)).to(dtype).permute(0, 1, 3, 4, 2).contiguous()
            weight, bias = torch.randn((2, shape[1]))
            images, slope = (t.permute(0, 3, 1, 2) for t in (x, grad))
            images.requires_grad_()
            stats = op.batch_norm_relu(x, weight, bias, None, None, 1e-5)[1:]
            theirs = F.relu(F.batch_norm(images, *stats, weight, bias, True))
            forward = {"eager": lambda i=images, s=stats, w=weight, b=bias: F.relu(
                F.batch_norm(i.detach(), *s, w, b, True))}
            backward = {"eager": lambda i=images, y=theirs, g=slope: torch.autograd.grad(
                y, i, g, retain_graph=True)}
            copy = size_of(x, x) / median_us(x.clone, device)
            kind = f"{str(dtype)[6:]}, {shape[1]} channels"
            yield row_of(f"batch_norm_relu, {kind}", x.numel(),
                         lambda: op.batch_norm_relu(x, weight, bias, None, None, 1e-5),
                         size_of(x, x, x), forward, copy, device)
            yield row_of(f"its gradient, {kind}", x.numel(),
                         lambda: op.batch_norm_relu_grad(grad, x, weight, bias, *stats, 1e-5,
                                                         True),
                         size_of(x, x, grad, grad, x), backward, copy, device)


def rows_of_selections(device):
    for n in SELECTIONS:
        scores, drop = torch.randn(n, device=device).exp(), n * 2 // 5
        others = {"topk": lambda s=scores, k=drop: torch.topk(s, k, sorted=False)}
        if n <= 10_000_000:
            others["sort"] = lambda s=scores: torch.sort(s)
            host = scores.cpu().numpy()
            others["argpartition"] = lambda a=host, k=n - drop: np.argpartition(a, k)
        kept = ops.select_kept(scores, drop, "high")
        copy = size_of(scores, scores) / median_us(scores.clone, device)
        yield row_of("select_kept", n, lambda s=scores, k=drop: ops.select_kept(s, k, "high"),
                     size_of(scores, kept), others, copy, device)


def row_of(name, n, call, moved, others, copy, device):
    us = median_us(call, device)
    return {"operator": name, "n": n, "us": us, "GB/s": moved / us / 1e3,
            "of copy": moved / us / copy,
            **{other: median_us(f, device) / us for other, f in others.items()}}


def measure(args, device):
    """A row for each operator and size."""
    rows = [*rows_of_batches(device), *rows_of_norms(device), *rows_of_selections(device)]
    print(f"{'operator':<21} {'elements':>11} {'us':>10} {'GB/s':>7} {'of copy':>7}  "
          "alternatives, times as long")
    for row in rows:
        others = "  ".join(f"{name} {row[name]:.1f}" for name in list(row)[5:])
        print(f"{row['operator']:<21} {row['n']:>11,} {row['us']:>10,.1f} {row['GB/s']:>7.1f} "
              f"{row['of copy']:>7.2f}  {others}")
    return {"rows": rows}
