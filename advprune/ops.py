"""The operators of adversarial training on pruned data; a kernel does each in one pass.

Each operator has its schema in reference.py, and there what it computes. Callers write
`ops.rs_start(...)`. Where csrc/ has been built, the dispatcher runs its kernel, otherwise the
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
from pathlib import Path

import torch
from torch import Tensor

from advprune.reference import OPERATORS
from advprune.reference import per_example as per_example
from advprune.reference import philox4x32 as philox4x32
from advprune.reference import pixels as pixels

# --- the public functions

def rs_start(x: Tensor, ids: Tensor, eps: float | Tensor, seed: int, epoch: int,
             clip_start: bool = False, noise_scale: float = 1.0) -> Tensor:
    """The random start of RS+FGSM: x + noise_scale U(-eps_i, eps_i) (Algorithm 1, line 26).

    x [B, ...] uint8 (read as x / 255) or float32, float16, bfloat16 in [0, 1]; ids [B] int64; eps
    a float or [B], in units of [0, 1] pixels; clip_start keeps the start in [0, 1]. Returns
    float32 for uint8, else x's own type, in x's memory layout. A captured CUDA graph keeps seed
    and epoch as they were, so that each replay draws the same noise.
    """
    return torch.ops.advprune.rs_start(x, ids.contiguous(), *_split(eps, x), seed, epoch,
                                       clip_start, noise_scale)


def fgsm_step(x: Tensor, grad: Tensor, ids: Tensor, eps: float | Tensor, alpha: float | Tensor,
              seed: int, epoch: int, clip_start: bool = False, noise_scale: float = 1.0,
              clip_ball: bool = True) -> Tensor:
    """The step of RS+FGSM from the start that `rs_start` gives for the same arguments (27-28).

    delta = clip(start - x + alpha sign(grad), -eps_i, eps_i), then x + delta clipped to [0, 1];
    sign(0) = sign(NaN) = 0. alpha is a float or [B]. N-FGSM (de Jorge et al. 2022, Algorithm 1) is
    noise_scale=2, clip_ball=False. grad has the shape and type of the start. The other arguments
    are those of `rs_start`; a replay of a CUDA graph has the same seed and epoch here too.
    """
    return torch.ops.advprune.fgsm_step(x, grad, ids.contiguous(), *_split(eps, x),
                                        *_split(alpha, x), seed, epoch, clip_start, noise_scale,
                                        clip_ball)


def augment(images: Tensor, ids: Tensor, seed: int, epoch: int, pad: int = 0, flip: bool = False,
            channels_last: bool = False, rows: Tensor | None = None) -> Tensor:
    """Images [N, C, H, W] uint8 of these ids [B], zero-padded, cropped, flipped; float32 / 255.

    Offsets 0 to 2 pad of the crop are equally likely, a flip has probability 1/2. A replay of a
    CUDA graph repeats them: it keeps seed and epoch. No graph may capture the first call of this
    operator or of cross_entropy_scores. rows [B] int64 gives the place of each id's image where
    images hold only a part of the set. Raises IndexError or RuntimeError for an id, or with rows a
    row, outside the images. On a card its image is NaN, and a later call raises.
    """
    return torch.ops.advprune.augment(images, ids.contiguous(), seed, epoch, pad, flip,
                                      channels_last, None if rows is None else rows.contiguous())


def cross_entropy_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(loss [B] float32, correct [B] bool) of logits [B, K], any float type, and labels [B].

    The sum is in float64 and does not include the largest logit. So small losses keep all the
    digits of float32, and kernel and reference give the same order of examples. Raises for a label
    that is no class; on a card its loss is NaN, and a later call raises.
    """
    return torch.ops.advprune.cross_entropy_scores(logits, labels.contiguous())


def select_kept(scores: Tensor, drop: int, how: str) -> Tensor:
    """Sorted ids [n - drop] that stay when `drop` of scores [n] float32 go (Algorithm 1, 8-20).

    how: `high` or `low` drop that end, `low+high` half from each (of an odd number, one more from
    the high end), `middle` drops those nearest the mean score, `extremes` those farthest from it.
    Among equal scores at a cut the
    lowest ids stay. Raises ValueError for non-finite scores, drop outside [0, n] or an unknown
    `how`.
    """
    n = len(scores)
    if not 0 <= drop <= n:
        raise ValueError(f"cannot drop {drop} of {n} examples")
    tails = {"high": 0, "low": drop, "low+high": drop // 2, "middle": drop, "extremes": 0}
    if how not in tails:
        raise ValueError(f"unknown strategy {how!r}: choose {', '.join(tails)}")
    centre = None
    if how in ("middle", "extremes"):  # summed in pieces: a float64 copy would double the memory
        centre = math.fsum(float(part.double().sum()) for part in scores.split(2**20)) / max(n, 1)
    low = tails[how]
    kept, bad = torch.ops.advprune.select_kept(scores.contiguous(), low, drop - low, centre)
    if bad := int(bad):
        raise ValueError(f"{bad} of {n} scores are not finite")
    return kept


def _split(value, x):
    """A float, or a value per example, as the pair of arguments that the schemas have for it."""
    if not torch.is_tensor(value):
        return float(value), None
    return 0.0, value.to(x.device, torch.float32).contiguous()


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
