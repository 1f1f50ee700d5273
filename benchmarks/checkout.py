"""One checkout of the project, in a process of its own that does what versions.py asks.

    python checkout.py FOLDER operators DEVICE
    python checkout.py FOLDER training DEVICE FLAGS OF train.py

It first writes what there is to do as JSON. Then it reads a number from stdin, does that, and
writes the time and a checksum of the result, again and again. All that it imports of the project
is the checkout's, which may be of an older version.
"""
import hashlib
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

SECONDS = 0.1  # of each turn of an operator


def operators(device):
    """(name, elements) -> call. Inputs are the same in every checkout."""
    from advprune import ops

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


def training_of(flags, device):
    """The train.Training that begins with these flags of train.py."""
    import train
    from advprune import config

    args, settings = config.parse(flags)
    return train.prepared(settings, device, args.data_dir)[0]


def checksum(tensors):
    """A checksum of every bit of these tensors."""
    return hashlib.sha256(b"".join(
        t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for t in tensors)).hexdigest()


def timed(call, wait):
    """(what a call returns, its seconds)."""
    wait()
    start = time.perf_counter()
    result = call()
    wait()
    return result, time.perf_counter() - start


def calls_of_operators(device, wait):
    """(name, elements) -> a function that gives (median us, checksum)."""
    def turn(call):
        result, times, end = call(), [], time.perf_counter() + SECONDS
        while len(times) < 3 or time.perf_counter() < end:
            times.append(1e6 * timed(call, wait)[1])
        return median(times), checksum(result if isinstance(result, tuple) else (result,))

    return {key: lambda call=call: turn(call) for key, call in operators(device).items()}


def call_of_training(device, wait, flags):
    """("epoch", examples) -> a function that trains one more: (seconds, the weights' checksum).

    The guard's measurement after the epoch counts.
    """
    from tqdm import tqdm

    from advprune import console

    console.device(str(device))  # from now on freed memory stays, as in train.py
    training, bar = training_of(flags, device), tqdm(disable=True)

    def turn():
        seconds = timed(lambda: training.epoch(len(training.rows), bar), wait)[1]
        return seconds, checksum(training.model.state_dict().values())

    return {("epoch", len(training.kept)): turn}


def serve(folder, what, device, *flags):
    sys.path[0] = folder  # instead of this file's
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed
    from advprune import ops

    device = torch.device(device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    calls = (calls_of_operators(device, wait) if what == "operators"
             else call_of_training(device, wait, list(flags)))
    found = str(Path(ops.__file__).parent.parent)
    print(json.dumps([found, ops.KERNELS, list(calls)]), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(list(calls.values())[int(line)]()), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
