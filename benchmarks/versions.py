"""benchmark.py versions: the operators of another checkout and of this one, in turn.

One process holds one checkout's kernels: this file run as a script, with that checkout in
PYTHONPATH. So it may import nothing of the project but the operators.
"""
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

if __name__ != "__main__":
    from advprune import runs
    from advprune.cli import UserError

ROUNDS = 9
SECONDS = 0.1  # of each operator and checkout in a round


# --- one checkout

def calls(ops, device):
    """(name, elements) -> call. Inputs are the same in every checkout."""
    draw = torch.Generator().manual_seed(0)
    found = {}
    for shape in (128, 3, 32, 32), (512, 1, 28, 28), (2048, 3, 32, 32):
        x, ids = torch.rand(shape, generator=draw).to(device), torch.arange(shape[0]).to(device)
        grad = torch.randn(shape, generator=draw).to(device)
        logits = torch.randn(shape[0], 10, generator=draw).to(device)
        images, labels = (255 * x).to(torch.uint8), ids % 10
        last, slope = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
        found |= {(name, x.numel()): call for name, call in {
            "rs_start": lambda x=x, i=ids: ops.rs_start(x, i, 8 / 255, 0, 0),
            "fgsm_step": lambda x=x, g=grad, i=ids: ops.fgsm_step(x, g, i, .03, .04, 0, 0),
            "rs_start, channels last": lambda x=last, i=ids: ops.rs_start(x, i, .03, 0, 0),
            "fgsm_step, channels last":
                lambda x=last, g=slope, i=ids: ops.fgsm_step(x, g, i, .03, .04, 0, 0),
            "augment": lambda x=images, i=ids: ops.augment(x, i, 0, 0, 4, True),
            "cross_entropy_scores":
                lambda z=logits, y=labels: ops.cross_entropy_scores(z, y)}.items()}
    for n in 50_000, 1_000_000, 10_000_000:
        scores = torch.randn(n, generator=draw).exp().to(device)
        found["select_kept", n] = lambda s=scores: ops.select_kept(s, len(s) * 2 // 5, "high")
    return found


def fingerprint(result):
    """A checksum of every bit of an operator's result."""
    tensors = result if isinstance(result, tuple) else (result,)
    return hashlib.sha256(b"".join(
        t.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors)
    ).hexdigest()


def serve(device):
    """Answer each number on stdin with the median time of that call, and its fingerprint."""
    from advprune import ops

    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    every = list(calls(ops, device).items())
    print(json.dumps([str(Path(ops.__file__).parent.parent), ops.KERNELS,
                      [key for key, _ in every]]), flush=True)
    for line in sys.stdin:
        call, times, end = every[int(line)][1], [], time.perf_counter() + SECONDS
        mark = fingerprint(call())
        while len(times) < 3 or time.perf_counter() < end:
            wait()
            start = time.perf_counter()
            call()
            wait()
            times.append(1e6 * (time.perf_counter() - start))
        print(json.dumps([median(times), mark]), flush=True)


# --- both

class Side:
    """The process of a checkout."""

    def __init__(self, folder, device, stack):
        self.process = stack.enter_context(subprocess.Popen(
            [sys.executable, __file__, str(device)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(folder)}))
        stack.callback(self.process.stdin.close)
        where, self.kernels, self.names = self.read()
        if Path(where).resolve() != Path(folder).resolve():
            raise UserError(f"{folder} is no checkout: its operators would come from {where}")

    def read(self):
        if not (line := self.process.stdout.readline()):
            raise UserError("a checkout's operators could not be called; its error is above")
        return json.loads(line)

    def time(self, number):
        print(number, file=self.process.stdin, flush=True)
        return self.read()


def measure(args, device):
    """A row for each operator and size: both times, and the median of their ratios."""
    with contextlib.ExitStack() as stack:
        sides = [Side(folder, device, stack)
                 for folder in (args.against, Path(__file__).parent.parent)]
        if sides[0].kernels != sides[1].kernels:
            raise UserError(f"{args.against} uses {sides[0].kernels} kernels, and this checkout "
                            f"{sides[1].kernels}; run `make kernels` in both")
        rounds = [[[side.time(number) for side in sides]
                   for number in range(len(sides[0].names))] for _ in range(args.rounds)]
    rows = []
    print(f"{'operator':<25} {'elements':>11} {'other, us':>10} {'us':>10} {'ratio':>6}  bits")
    for (name, n), pairs in zip(sides[0].names, zip(*rounds, strict=True), strict=True):
        other, here = (median(pair[side][0] for pair in pairs) for side in (0, 1))
        row = {"operator": name, "n": n, "other_us": other, "us": here,
               "ratio": median(pair[1][0] / pair[0][0] for pair in pairs),
               "same_bits": all(pair[0][1] == pair[1][1] for pair in pairs)}
        rows.append(row)
        print(f"{name:<25} {n:>11,} {other:>10,.1f} {here:>10,.1f} {row['ratio']:>6.2f}  "
              f"{'equal' if row['same_bits'] else 'DIFFER'}")
    commit = runs._git("-C", str(Path(args.against).resolve()), "rev-parse", "--short=12", "HEAD")
    return {"other": commit, "rounds": args.rounds, "rows": rows}


if __name__ == "__main__":
    serve(torch.device(sys.argv[1]))
