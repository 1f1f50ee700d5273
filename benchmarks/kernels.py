"""python -m benchmarks kernels: each operator beside a copy and its alternatives, row by row.

Within a row all take turns, round by round: the operator, a copy of its input, eager torch as
fast_adversarial writes it, torch.compile of the same lines, and for the selection torch.topk,
torch.sort and numpy.argpartition; for the start and the step of channels-last images, the same
operator on contiguous ones. An alternative's number is the median over rounds of its time
divided by the operator's. If the middle 80 % of the rounds have values on both sides of 1, the
row says so. GB/s counts what the operator must read and write at least.
"""
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from advprune import ops
from advprune.errors import UserError
from benchmarks.timing import sync

EPS, ALPHA = 8 / 255, 10 / 255
PAD = 4  # of the crop
ROUNDS = 15  # of a row; fewer, but at least 3, if they take longer than a row may
AT_LEAST, ROW = 1e-3, 2.5  # seconds: of one reading, and of all rounds of a row
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
          "uint8": torch.uint8}


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


def eager_norm(x, weight, bias):
    return F.relu(F.batch_norm(x, None, None, weight, bias, True))


# --- the operators

class Case(NamedTuple):
    """What a row measures. moved: the bytes that the operator reads and writes at least."""

    call: Callable
    moved: int
    copied: torch.Tensor  # the copy's input
    others: dict[str, Callable]


def size_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def batch(shape, dtype, layout, device):
    """(images, their ids, what attacks add to: the start's type)."""
    x = torch.rand(shape, device=device)
    x = (x * 255).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    pixels = ops.pixels(x) if dtype == torch.uint8 else x
    x, pixels = (t.contiguous(memory_format=layout) for t in (x, pixels))
    return x, torch.arange(len(x), device=device), pixels


def rs_start(shape, dtype, layout, device, compiled):
    x, ids, pixels = batch(shape, dtype, layout, device)
    others, flat = {"eager": lambda: eager_start(pixels)}, x.contiguous()
    if layout != torch.contiguous_format:  # what the layout costs
        others["contiguous"] = lambda: ops.rs_start(flat, ids, EPS, 0, 0)
    return Case(lambda: ops.rs_start(x, ids, EPS, 0, 0), size_of(x, pixels), x, others)


def fgsm_step(shape, dtype, layout, device, compiled):
    x, ids, pixels = batch(shape, dtype, layout, device)
    grad, start = torch.randn_like(pixels), eager_start(pixels)
    others, flat = {"eager": lambda: eager_step(pixels, start, grad)}, x.contiguous()
    slope = grad.contiguous()
    if layout != torch.contiguous_format:  # what the layout costs
        others["contiguous"] = lambda: ops.fgsm_step(flat, slope, ids, EPS, ALPHA, 0, 0)
    return Case(lambda: ops.fgsm_step(x, grad, ids, EPS, ALPHA, 0, 0), size_of(x, grad, pixels),
                x, others)


def both(shape, dtype, layout, device, compiled):
    x, ids, pixels = batch(shape, dtype, layout, device)
    grad, fused = torch.randn_like(pixels), compiled(eager_both)
    return Case(lambda: (ops.rs_start(x, ids, EPS, 0, 0),
                         ops.fgsm_step(x, grad, ids, EPS, ALPHA, 0, 0)),
                size_of(x, pixels, x, grad, pixels), x,
                {"eager": lambda: eager_both(pixels, grad),
                 "compile": lambda: fused(pixels, grad)})


def augment(shape, dtype, layout, device, compiled):
    images, ids, pixels = batch(shape, dtype, torch.contiguous_format, device)
    last = layout == torch.channels_last
    return Case(lambda: ops.augment(images, ids, 0, 0, PAD, True, last), size_of(images, pixels),
                images, {"eager": lambda: eager_augment(images, ids, 0, 0, PAD, True, last)})


def cross_entropy_scores(shape, dtype, layout, device, compiled):
    logits = torch.randn(shape, device=device).to(dtype)
    labels, fused = torch.randint(shape[1], shape[:1], device=device), compiled(eager_scores)
    return Case(lambda: ops.cross_entropy_scores(logits, labels),
                size_of(logits, labels) + 5 * shape[0], logits,
                {"eager": lambda: eager_scores(logits, labels),
                 "compile": lambda: fused(logits, labels)})


def select_kept(shape, dtype, layout, device, compiled):
    scores, drop = torch.randn(shape, device=device).exp(), shape[0] * 2 // 5
    host = scores.cpu().numpy()
    return Case(lambda: ops.select_kept(scores, drop, "high"),
                size_of(scores) + 8 * (shape[0] - drop), scores,
                {"topk": lambda: torch.topk(scores, drop, sorted=False),
                 "sort": lambda: torch.sort(scores),
                 "argpartition": lambda: np.argpartition(host, shape[0] - drop)})


def norm(shape, dtype, device):
    """(images [B, H, W, C], another such, weight, bias, the same images as [B, C, H, W])."""
    x, grad = torch.randn((2, *shape), device=device).to(dtype).permute(0, 1, 3, 4, 2).contiguous()
    weight, bias = torch.randn((2, shape[1]), device=device)
    return x, grad, weight, bias, x.permute(0, 3, 1, 2)


def batch_norm_relu(shape, dtype, layout, device, compiled):
    x, _, weight, bias, images = norm(shape, dtype, device)
    fused = compiled(eager_norm)
    call = torch.ops.advprune.batch_norm_relu
    return Case(lambda: call(x, weight, bias, None, None, 1e-5), size_of(x, x, x), x,
                {"eager": lambda: eager_norm(images, weight, bias),
                 "compile": lambda: fused(images, weight, bias)})


def batch_norm_relu_grad(shape, dtype, layout, device, compiled):
    x, grad, weight, bias, images = norm(shape, dtype, device)
    out = eager_norm(images.requires_grad_(), weight, bias)
    slope, var_mean = grad.permute(0, 3, 1, 2), torch.var_mean(x.float(), (0, 1, 2), correction=0)
    call = torch.ops.advprune.batch_norm_relu_grad
    return Case(lambda: call(grad, x.detach(), weight, bias, *reversed(var_mean), 1e-5, True),
                size_of(x, x, grad, grad, x), x,
                {"eager": lambda: torch.autograd.grad(out, images, slope, retain_graph=True)})


def conv_input_grad(shape, dtype, layout, device, compiled):
    """The first convolution of mnist-net."""
    x = torch.rand(shape, device=device).requires_grad_()
    weight = torch.randn(16, 1, 4, 4, device=device)
    out = F.conv2d(x, weight, None, 2, 1)
    slope = torch.randn_like(out).contiguous(memory_format=torch.channels_last)
    rows = slope.permute(0, 2, 3, 1)
    call = torch.ops.advprune.conv_input_grad
    return Case(lambda: call(rows, weight, *shape[2:], 2, 1), size_of(slope, x), x.detach(),
                {"eager": lambda: torch.autograd.grad(out, x, slope, retain_graph=True)})


class Operator(NamedTuple):
    case: Callable
    shapes: tuple  # of the default run
    dtypes: tuple  # that it takes; the first is the default
    layouts: tuple = ("contiguous",)
    cpu_only: bool = False
    takes: Callable = lambda shape: True


def has_variance(shape):
    """Whether a channel has more than one value."""
    return shape[0] * shape[2] * shape[3] > 1


IMAGES, NORMS = ((128, 3, 32, 32), (1024, 3, 32, 32)), ((128, 16, 32, 32), (128, 64, 16, 16))
FLOATS, LAST = ("fp32", "fp16", "bf16"), ("channels-last",)
OPERATORS = {
    "rs_start": Operator(rs_start, IMAGES, (*FLOATS, "uint8"), tuple(LAYOUTS)),
    "fgsm_step": Operator(fgsm_step, IMAGES, (*FLOATS, "uint8"), tuple(LAYOUTS)),
    "rs_start + fgsm_step": Operator(both, IMAGES, (*FLOATS, "uint8"), tuple(LAYOUTS)),
    "augment": Operator(augment, IMAGES, ("uint8",), tuple(LAYOUTS),
                        takes=lambda shape: max(shape[2:]) >= PAD),
    "cross_entropy_scores": Operator(cross_entropy_scores, ((128, 10), (2048, 1000)), FLOATS),
    "select_kept": Operator(select_kept, ((50_000,), (5_000_000,)), ("fp32",),
                            takes=lambda shape: shape[0] >= 3),  # one goes
    "batch_norm_relu": Operator(batch_norm_relu, NORMS, ("fp32", "bf16"), LAST, True,
                                has_variance),
    "batch_norm_relu_grad": Operator(batch_norm_relu_grad, NORMS, ("fp32", "bf16"), LAST, True,
                                     has_variance),
    "conv_input_grad": Operator(conv_input_grad, ((100, 1, 28, 28),), ("fp32",), LAST, True,
                                lambda shape: shape[1] == 1 and min(shape[2:]) >= 2)}


def wanted(args, device):
    """(operator, shape, dtype, layout) of each row that the flags ask for.

    Raises UserError if they leave none.
    """
    rows = []
    for name, operator in OPERATORS.items():
        if args.operator not in (None, name) or (operator.cpu_only and device.type != "cpu"):
            continue
        dtype = args.dtype or operator.dtypes[0]
        for shape in [args.shape] if args.shape else operator.shapes:
            if (dtype in operator.dtypes and len(shape) == len(operator.shapes[0])
                    and operator.takes(shape)):
                one = len(shape) == 4 and shape[1] == 1  # with one channel, both layouts are one
                rows += [(name, shape, dtype, layout)
                         for layout in operator.layouts[:1 if one else None]]
    if not rows:
        raise UserError("no operator takes this --shape and --dtype: images are B,C,H,W, logits "
                        f"B,K and scores N; {', '.join(DTYPES)}, a few values, and several "
                        "channels are not for all")
    return rows


# --- a row

def in_turn(calls, device, rounds):
    """name -> its times [rounds] in microseconds of each call. All calls take turns."""
    repeats = {}
    for name, call in calls.items():
        call()  # it warms up, or compiles
        repeats[name] = max(1, round(AT_LEAST / seconds(call, device)))
    times: dict[str, list] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and (time.perf_counter() - start) * (done + 1) / done > ROW:
            break
        for name, call in calls.items():
            times[name].append(1e6 * seconds(call, device, repeats[name]))
    return {name: np.array(values) for name, values in times.items()}


def seconds(call, device, repeat=1):
    """The time of one of `repeat` calls."""
    sync(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    sync(device)
    return (time.perf_counter() - start) / repeat


def row_of(name, shape, dtype, layout, device, rounds, compiled) -> dict[str, Any]:
    """Time, throughput and alternatives of one operator on one input."""
    case = OPERATORS[name].case(shape, DTYPES[dtype], LAYOUTS[layout], device, compiled)
    times = in_turn({"operator": case.call, "copy": case.copied.clone, **case.others}, device,
                    rounds)
    ours = times["operator"]
    us, copy = np.median(ours), np.median(times["copy"])
    others = {}
    for other in case.others:
        low, middle, high = np.quantile(times[other] / ours, (0.1, 0.5, 0.9))
        others[other] = {"times": middle, "low": low, "high": high}
    low, high = np.quantile(ours, (0.1, 0.9))
    return {"operator": name, "shape": list(shape), "dtype": dtype, "layout": layout, "us": us,
            "spread": (high - low) / us, "rounds": len(ours), "GB/s": case.moved / us / 1e3,
            "of copy": case.moved / us / (2 * size_of(case.copied) / copy), "others": others}


def words(row):
    """A row's cells: all but the alternatives, and these. Fewer than 3 rounds have no spread."""
    few = row["rounds"] < 3
    return [row["operator"], "x".join(map(str, row["shape"])), row["dtype"], row["layout"],
            f"{row['us']:,.1f}", "-" if few else f"{row['spread']:.0%}", f"{row['GB/s']:.1f}",
            f"{row['of copy']:.2f}", ", ".join(
                f"{name} {other['times']:.2g}"
                + (" (no clear difference)" if few or other["low"] <= 1 <= other["high"] else "")
                for name, other in row["others"].items())]


HEAD = ["operator", "shape", "type", "layout", "us", "spread", "GB/s", "of a copy",
        "alternatives, times as long"]
LINE = "{:<21} {:>16} {:>5} {:>13} {:>10} {:>6} {:>6} {:>9}  {}"


def measure(args, device):
    """A row for each operator and input, printed as it is measured."""
    chosen, rows = wanted(args, device), []
    compiled = {}  # by function: for a shape that it has not seen torch compiles again by itself

    def compile_once(function):
        return compiled.setdefault(function, torch.compile(function))

    print(LINE.format(*HEAD))
    with tqdm(total=len(chosen), unit="row", leave=False, disable=None) as bar:
        for what in chosen:
            rows.append(row_of(*what, device, args.rounds, compile_once))
            tqdm.write(LINE.format(*words(rows[-1])))
            bar.update()
    return {"rows": rows}
