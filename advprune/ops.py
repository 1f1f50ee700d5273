"""The operators of adversarial training on pruned data; a kernel does each in one pass.

Each operator has its schema in reference.py, and there what it computes. Callers write
`ops.rs_start(...)`. If csrc/ has been built, the dispatcher runs its kernel, otherwise the
plain-torch reference. ADVPRUNE_KERNELS=0 ignores the build. `ops.KERNELS` says what is in use:
`reference`, `cpu` or `cpu+cuda`. These two modules need torch and nothing else.

All randomness is counter-based (Philox4x32-10, Salmon et al. 2011): key = seed, counter =
(element // 4, example id, epoch, stream). So the noise of an example does not depend on its place
in a batch, the batch size, the process or the device.
"""
import hashlib
import math
import os
import sys
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from advprune.reference import OPERATORS
from advprune.reference import per_example as per_example
from advprune.reference import philox4x32 as philox4x32
from advprune.reference import pixels as pixels

# --- the public functions

def rs_start(x: Tensor, ids: Tensor, eps: float | Tensor, seed: int, epoch: int,
             clip_start: bool = False, noise_scale: float = 1.0) -> Tensor:
    """The random start of RS+FGSM: x + noise_scale U(-eps_i, eps_i) (Algorithm 1, line 26).

    x [B, ...] uint8 (read as x / 255) or float32, float16, bfloat16 in [0, 1]; ids [B] whole
    numbers, of which the lowest 32 bits count; eps a number from 0 on, or a tensor [], [B] or
    [B, 1, 1, 1], in units of [0, 1] pixels; clip_start keeps the start in [0, 1]. Returns
    contiguous float32 for uint8, else x's own type in x's memory layout. The gradient for x is 1,
    and 0 if clip_start moved the start to the box. A captured CUDA graph keeps seed and epoch
    as they were, so that each replay draws the same noise.

    This and the other operators raise TypeError or ValueError for arguments of another type, shape
    or device, and for a tensor that requires a gradient which does not exist. The values of
    tensors eps and alpha are not checked.
    """
    _check_pixels("rs_start", x)
    _check_whole("rs_start", seed=seed, epoch=epoch)
    _check_flags("rs_start", clip_start=clip_start)
    noise_scale = _number("rs_start", "noise_scale", noise_scale)
    ids = _integers("rs_start", "ids", ids, x.shape[0], x)
    start = _Start.apply if _needs_grad("rs_start", "x", x) else torch.ops.advprune.rs_start
    return start(x, ids, *_split("rs_start", "eps", eps, x), seed, epoch, clip_start, noise_scale)


def fgsm_step(x: Tensor, grad: Tensor, ids: Tensor, eps: float | Tensor, alpha: float | Tensor,
              seed: int, epoch: int, clip_start: bool = False, noise_scale: float = 1.0,
              clip_ball: bool = True) -> Tensor:
    """The step of RS+FGSM from the start that `rs_start` gives for the same arguments (27-28).

    delta = clip(start - x + alpha sign(grad), -eps_i, eps_i), then x + delta clipped to [0, 1];
    sign(0) = sign(NaN) = 0. alpha is as eps. N-FGSM (de Jorge et al. 2022, Algorithm 1) is
    noise_scale=2, clip_ball=False. grad has the shape and type of the start. The other arguments
    are those of `rs_start`; a replay of a CUDA graph has the same seed and epoch here too. There
    is no gradient.
    """
    _check_pixels("fgsm_step", x)
    _check_constant("fgsm_step", "x", x)
    _check_whole("fgsm_step", seed=seed, epoch=epoch)
    _check_flags("fgsm_step", clip_start=clip_start, clip_ball=clip_ball)
    noise_scale = _number("fgsm_step", "noise_scale", noise_scale)
    dtype = torch.float32 if x.dtype == torch.uint8 else x.dtype
    _check_tensor("fgsm_step", "grad", grad, (dtype,), f"{dtype}, as the start")
    _check_constant("fgsm_step", "grad", grad)
    if grad.shape != x.shape:
        raise ValueError(f"fgsm_step: grad must be {list(x.shape)}, as the start, not "
                         f"{list(grad.shape)}")
    _check_device("fgsm_step", "grad", grad, x)
    ids = _integers("fgsm_step", "ids", ids, x.shape[0], x)
    return torch.ops.advprune.fgsm_step(x, grad, ids, *_split("fgsm_step", "eps", eps, x),
                                        *_split("fgsm_step", "alpha", alpha, x), seed, epoch,
                                        clip_start, noise_scale, clip_ball)


def augment(images: Tensor, ids: Tensor, seed: int, epoch: int, pad: int = 0, flip: bool = False,
            channels_last: bool = False, rows: Tensor | None = None) -> Tensor:
    """Images [N, C, H, W] uint8 of these ids [B], zero-padded, cropped, flipped; float32 / 255.

    Offsets 0 to 2 pad of the crop are equally likely, a flip has probability 1/2; pad is at most
    the images' longer side. A replay of a CUDA graph repeats them: it keeps seed and epoch. No
    graph may capture the first call of this operator or of cross_entropy_scores. rows [B] gives
    the place of each id's image if images hold only a part of the set. Raises RuntimeError for
    an id, or with rows a row, outside the images. On a card the kernel makes its image NaN, and a
    later call raises.
    """
    _check_tensor("augment", "images", images, (torch.uint8,), "uint8")
    if images.dim() != 4 or not images.is_contiguous():
        raise ValueError("augment: images must be contiguous [N, C, H, W], not "
                         f"{list(images.shape)} of strides {images.stride()}")
    _check_whole("augment", seed=seed, epoch=epoch, pad=pad)
    _check_flags("augment", flip=flip, channels_last=channels_last)
    side = max(images.shape[2:])
    if not 0 <= pad <= side:
        raise ValueError(f"augment: pad must be from 0 to {side}, the images' longer side, not "
                         f"{pad}")
    ids = _integers("augment", "ids", ids, None, images)
    if rows is not None:
        rows = _integers("augment", "rows", rows, len(ids), images)
    return torch.ops.advprune.augment(images, ids, seed, epoch, pad, flip, channels_last, rows)


def cross_entropy_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss [B] float32, correct [B] bool) of logits [B, K] and labels [B], whole numbers.

    logits are float32, float16 or bfloat16. The sum is in float64 and does not include the largest
    logit. So small losses keep all the digits of float32, and kernel and reference give the same
    order of examples. A row with a NaN is not correct. The loss has a gradient for logits. Raises
    RuntimeError for a label that is no class; on a card the kernel makes its loss NaN, and a later
    call raises.
    """
    _check_tensor("cross_entropy_scores", "logits", logits, FLOATS,
                  "float32, float16 or bfloat16")
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError("cross_entropy_scores: logits must be [B, K], K at least 1, not "
                         f"{list(logits.shape)}")
    labels = _integers("cross_entropy_scores", "labels", labels, logits.shape[0], logits)
    needs_grad = _needs_grad("cross_entropy_scores", "logits", logits)
    scores = _Scores.apply if needs_grad else torch.ops.advprune.cross_entropy_scores
    return scores(logits, labels)


def select_kept(scores: Tensor, drop: int, how: str) -> Tensor:
    """Sorted ids [n - drop] that stay when `drop` of scores [n] float32 go (Algorithm 1, 8-20).

    how: `high` or `low` drop that end, `low+high` half from each (of an odd number, one more from
    the high end), `middle` drops those nearest the mean score, `extremes` those farthest from it.
    Among equal scores at a cut the lowest ids stay. There is no gradient. Raises ValueError for
    non-finite scores, drop outside [0, n] or an unknown `how`.
    """
    _check_tensor("select_kept", "scores", scores, (torch.float32,), "float32")
    if scores.dim() != 1 or scores.is_meta:
        raise ValueError("select_kept: scores must be a vector of values, not "
                         f"{list(scores.shape)} on {scores.device}")
    _check_constant("select_kept", "scores", scores)
    _check_whole("select_kept", drop=drop)
    n = len(scores)
    if not 0 <= drop <= n:
        raise ValueError(f"select_kept: cannot drop {drop} of {n} examples")
    tails = {"high": 0, "low": drop, "low+high": drop // 2, "middle": drop, "extremes": 0}
    if how not in [*tails]:
        raise ValueError(f"select_kept: unknown strategy {how!r}: choose {', '.join(tails)}")
    centre = None
    if how in ("middle", "extremes"):  # summed in pieces: a float64 copy would double the memory
        centre = math.fsum(float(part.double().sum()) for part in scores.split(2**20)) / max(n, 1)
        if not math.isfinite(centre):  # nor is a score, and then all distances are NaN
            centre = None
    low = tails[how]
    kept, bad = torch.ops.advprune.select_kept(scores.contiguous(), low, drop - low, centre)
    if bad := int(bad):
        raise ValueError(f"select_kept: {bad} of {n} scores are not finite")
    return kept


# --- the checks, the same with kernels and without; none waits for the device

FLOATS = torch.float32, torch.float16, torch.bfloat16
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16,
            torch.uint32, torch.uint64)
WHOLE: Any = int, Integral, torch.SymInt  # numpy's too; the usual one first, which is found faster
REAL: Any = float, int, Real


def _check_tensor(op, name, value, dtypes, words):
    if not torch.is_tensor(value):
        raise TypeError(f"{op}: {name} must be a tensor of {words}, not {_shown(value)}")
    if value.dtype not in dtypes or value.layout != torch.strided:
        found = value.dtype if value.layout == torch.strided else value.layout
        raise TypeError(f"{op}: {name} must be a tensor of {words}, not {found}")


def _shown(value):
    return repr(value) if isinstance(value, (*REAL, str)) else type(value).__name__


def _check_pixels(op, x):
    _check_tensor(op, "x", x, (torch.uint8, *FLOATS), "uint8, float32, float16 or bfloat16")
    if x.dim() == 0:
        raise ValueError(f"{op}: x must have a batch dimension")


def _check_device(op, name, value, x):
    if value.device != x.device:
        raise ValueError(f"{op}: {name} must be on {x.device} as the other tensors, not on "
                         f"{value.device}")


def _check_whole(op, **values):
    for name, value in values.items():
        if not isinstance(value, WHOLE) or not -2**63 <= value < 2**63:
            raise TypeError(f"{op}: {name} must be a whole number of 64 bits, not {_shown(value)}")


def _check_flags(op, **values):
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{op}: {name} must be True or False, not {_shown(value)}")


def _number(op, name, value, form="a number from 0 on"):
    if not isinstance(value, REAL) or not 0 <= value < 2.0**128:  # the range of float32
        raise ValueError(f"{op}: {name} must be {form}, not {_shown(value)}")
    return float(value)


def _needs_grad(op, name, value):
    if unpack_dual(value).tangent is not None:
        raise ValueError(f"{op}: there is no forward-mode gradient for {name}")
    return torch.is_grad_enabled() and value.requires_grad


def _check_constant(op, name, value):
    if _needs_grad(op, name, value):
        raise ValueError(f"{op}: there is no gradient for {name}; give {name}.detach()")


def _integers(op, name, value, count, x):
    """An integer vector, of this length if one is given, as contiguous int64."""
    _check_tensor(op, name, value, INTEGERS, "whole numbers, int64 for example")
    count = value.numel() if count is None else count
    if value.dim() != 1 or value.shape[0] != count:
        raise ValueError(f"{op}: {name} must be a vector of {count}, one for each example, not "
                         f"{list(value.shape)}")
    _check_device(op, name, value, x)
    return value.long().contiguous()


def _split(op, name, value, x):
    """A number, or a value per example, as the pair of arguments that the schemas have for it."""
    if not torch.is_tensor(value):
        return _number(op, name, value, "a number from 0 on, or a tensor"), None
    _check_tensor(op, name, value, (*FLOATS, torch.float64, *INTEGERS), "real numbers")
    _check_constant(op, name, value)
    if value.device.type != "cpu":  # from there it may come along
        _check_device(op, name, value, x)
    count = x.shape[0]
    if value.dim() == 0:
        value = value.expand(count)  # float() would wait for the device
    if value.shape[0] != count or value.numel() != count:
        raise ValueError(f"{op}: {name} must be a number or one value for each of the {count} "
                         f"examples, not {list(value.shape)}")
    return 0.0, value.to(x.device, torch.float32).reshape(count).contiguous()


# --- the gradients, the same with kernels and without
# A registered gradient would cost each call microseconds, also if nothing needs one.

class _Start(torch.autograd.Function):
    """rs_start; its gradient for x is 1, and 0 if clip_start moved the start to the box."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.ops.advprune.rs_start(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, ids, ctx.eps, eps_i, ctx.seed, ctx.epoch, ctx.clip_start, ctx.noise_scale = inputs
        if ctx.clip_start:
            ctx.save_for_backward(x, ids, eps_i)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.clip_start:
            x, ids, eps_i = ctx.saved_tensors
            x = x.float()
            noise = torch.ops.advprune.rs_start(torch.zeros_like(x), ids, ctx.eps, eps_i, ctx.seed,
                                                ctx.epoch, False, ctx.noise_scale)
            grad = torch.where((noise >= -x) & (noise <= 1 - x), grad, 0)
        return grad, *[None] * 7


class _Scores(torch.autograd.Function):
    """cross_entropy_scores; the loss' gradient for logits is softmax(logits) - one_hot(labels)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.advprune.cross_entropy_scores(logits, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        picked = torch.arange(logits.shape[1], device=logits.device) == labels[:, None]
        slope = torch.softmax(logits.float(), 1) - picked.float()
        return (slope * grad[:, None]).to(logits.dtype), None


# --- declaration, and the build

HERE = Path(__file__).resolve().parent
SOURCES = sorted((HERE.parent / "csrc").glob("*.[ch]*"))


def _build_name() -> str:
    """The build's file name: a digest of schemas and sources, so that an old build is noticed."""
    if not SOURCES:  # an installed package: the build beside it is used
        return "_C_"
    schemas = repr([(name, operator.schema) for name, operator in OPERATORS.items()])
    content = b"".join([schemas.encode(), *(source.read_bytes() for source in SOURCES)])
    return f"_C_{hashlib.sha256(content).hexdigest()[:12]}"


BUILD = _build_name()  # setup.py writes it beside this file


def _load() -> str:
    """Load the build and say what serves now: `reference`, `cpu` or `cpu+cuda`."""
    if os.environ.get("ADVPRUNE_KERNELS") == "0":
        return "reference"
    builds = sorted(HERE.glob("_C_*.so"))
    ours = [path for path in builds if path.name.startswith(BUILD)]
    trouble = "is out of date" if builds and not ours else None
    if ours:
        try:
            torch.ops.load_library(ours[0])
        except OSError as error:
            trouble = f"does not load ({str(error).partition(chr(10))[0]})"
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    served = {key: [name for name in OPERATORS if has(f"advprune::{name}", key)]
              for key in ("CPU", "CUDA")}
    missing = [name for name in OPERATORS if name not in served["CPU"]]
    if ours and not trouble and missing:
        trouble = f"lacks {', '.join(missing)}"
    if trouble:
        print(f"advprune: the kernels' build {trouble}; plain torch is used until you "
              "run `make kernels`", file=sys.stderr)
    return "+".join(key.lower() for key in served if served[key]) or "reference"


LIBRARY = torch.library.Library("advprune", "DEF")
for _name, _operator in OPERATORS.items():
    LIBRARY.define(_name + _operator.schema)
    LIBRARY.impl(_name, _operator.reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"advprune::{_name}", _operator.fake, lib=LIBRARY)
KERNELS = _load()
