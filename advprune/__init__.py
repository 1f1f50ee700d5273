"""Adversarial training on less data: what the scripts share, for use in other projects too.

    from advprune import ops, attacks, pruning     the operators, the attacks, score and select
    advprune.load("runs/NAME")                     the network of a finished run
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

if sys.platform == "win32" or sys.version_info < (3, 10):
    raise ImportError("advprune needs Python 3.10 or later, on Linux or macOS; on Windows use WSL "
                      "(docs/systems.md)")


def load(run: str | Path, device: str = "cpu", trust_code: bool = False) -> torch.nn.Module:
    """The finished network of a run directory, in eval mode, for images [B, C, H, W] in [0, 1].

    Its layers are PyTorch's own. trust_code allows a network whose code only the run itself still
    has. Raises ValueError if the directory is no finished run.
    """
    from advprune import layers, weights

    return layers.plain(weights.of_run(run, trust_code)).to(device).eval()
