"""python -m benchmarks layouts: which memory layout and precision is fastest for which network.

A step of training is RS+FGSM and an update, on random images. The layouts and precisions of a
network take turns. The first way is that of PyTorch alone: its layers, contiguous, in a process
whose memory is as it comes.
"""
import itertools
import time
from functools import cache
from statistics import median

import torch
import torch.nn.functional as F

from advprune import attacks, layers, models
from advprune.precision import autocast
from benchmarks.kernels import LAYOUTS
from benchmarks.timing import apart, sync

NETWORKS = [  # name, width, channels, size, images in a step: fewer where a step takes seconds
    ("mnist-net", 16, 1, 28, 100), ("preactresnet18", 16, 3, 32, 128),
    ("preactresnet18", 64, 3, 32, 32), ("wideresnet28-10", 2, 3, 32, 32),
    ("resnet18", None, 3, 32, 128), ("vgg11", None, 3, 32, 64)]
THEIRS = "PyTorch alone"  # the first way
ROUNDS, SECONDS = 5, 0.5  # SECONDS: about how long a layout's turn takes
EPS, ALPHA = 8 / 255, 10 / 255


def step(model, opt, x, y, precision):
    """One step of training: RS+FGSM, then an update."""
    with autocast(precision, x.device):
        with attacks.frozen(model):
            adv = attacks.rs_fgsm(model, x, y, torch.arange(len(y), device=y.device), eps=EPS,
                                  alpha=ALPHA)
        loss = F.cross_entropy(model(adv), y)
    opt.zero_grad()
    loss.backward()
    opt.step()


@cache
def step_of(network, layout, precision, device):
    """A call that makes one step of this network."""
    name, width, channels, size, batch = network
    x, y = torch.rand(batch, channels, size, size), torch.randint(10, (batch,))
    x, y, form = x.to(device), y.to(device), LAYOUTS.get(layout, torch.contiguous_format)
    model = models.build(name, channels, 10, width, size)
    if layout == THEIRS:
        layers.plain(model)
    model = layers.lay_out(model, form).to(device).train()
    opt = torch.optim.SGD(model.parameters(), 0.001)
    images = x.contiguous(memory_format=form)
    return lambda: step(model, opt, images, y, precision)


def seconds(steps, *which):
    """The time of a step of step_of(*which), over so many of them."""
    call, device = step_of(*which), which[-1]
    sync(device)
    start = time.perf_counter()
    for _ in range(steps):
        call()
    sync(device)
    return (time.perf_counter() - start) / steps


def rates(network, device, rounds):
    """(layout, precision) -> images/s, the median over rounds."""
    ways = [(THEIRS, "fp32"), *itertools.product(LAYOUTS, ("fp32", "bf16"))]
    taken, steps = {way: [] for way in ways}, 1
    with apart(seconds) as other:
        for round_ in range(-2, rounds):  # the first warms up, the second tells how many steps
            for layout, precision in ways:
                timed = other if layout == THEIRS else seconds
                found = timed(steps, network, layout, precision, device)
                if round_ >= 0:
                    taken[layout, precision].append(found)
            if round_ == -1:
                steps = max(1, round(SECONDS / found))
    step_of.cache_clear()
    return {way: network[-1] / median(times) for way, times in taken.items()}


def measure(args, device):
    """A row for each network, layout and precision."""
    rows = []
    print(f"medians of {args.rounds} rounds in turn; ratios to PyTorch alone\n"
          f"{'network':16} {'width':>5} {'image':>8} {'batch':>5}  {'layout':14} {'precision':9} "
          f"{'images/s':>9} ratio")
    for network in NETWORKS:
        name, width, channels, size, batch = network
        found = rates(network, device, args.rounds)
        for (layout, precision), rate in found.items():
            rows.append({"model": name, "width": width, "image": f"{channels}x{size}x{size}",
                         "batch_size": batch, "layout": layout, "precision": precision,
                         "images_per_second": rate,
                         "ratio": rate / found[THEIRS, "fp32"]})
            print("{model:16} {0:>5} {image:>8} {batch_size:5}  {layout:14} {precision:9} "
                  "{images_per_second:9,.0f} {ratio:5.2f}".format(width or "", **rows[-1]))
    return {"rounds": args.rounds, "rows": rows}
