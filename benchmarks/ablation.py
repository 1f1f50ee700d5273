"""benchmark.py ablation: what the kernels are worth in whole epochs. All are ratios.

Without a kernel there are the lines of plain torch that one would write instead. "network alone"
makes the same passes through the network and nothing else.
"""
import contextlib
import time
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train
from advprune import attacks, layers, ops, pruning
from benchmarks import kernels, recipe
from benchmarks.timing import sync

LIMIT, ROUNDS = 10_000, 7  # examples an epoch, and epochs of each variant


class Eager:
    """The operators' alternatives under the operators' names; a step needs its start again."""

    def rs_start(self, x, ids, eps, seed, epoch, clip_start=False, noise_scale=1.0):
        x = ops.pixels(x)
        self.start = x + torch.empty_like(x).uniform_(-eps, eps)
        if clip_start:
            self.start = self.start.clamp(0, 1)
        return self.start

    def fgsm_step(self, x, grad, ids, eps, alpha, *_, **__):
        x = ops.pixels(x)
        delta = torch.clamp(self.start.detach() - x + alpha * torch.sign(grad), -eps, eps)
        return torch.clamp(x + delta, 0, 1)

    augment = staticmethod(kernels.eager_augment)
    cross_entropy_scores = staticmethod(kernels.eager_scores)
    select_kept = staticmethod(kernels.eager_select)

    def conv_input_grad(self, grad, weight, height, width, stride, padding):
        shape = [len(grad), 1, height, width]
        return torch.nn.grad.conv2d_input(shape, weight, grad, stride, padding)

    def takes(self, rows):  # so batch_norm_relu leaves it to PyTorch
        return False


VARIANTS = {"all kernels": (), "without rs_start, fgsm_step": ("rs_start", "fgsm_step"),
            "without conv_input_grad": ("conv_input_grad",),
            "without batch_norm_relu": ("takes",),
            "without augment": ("augment",),
            "without cross_entropy_scores": ("cross_entropy_scores",),
            "without select_kept": ("select_kept",)}
VARIANTS["no kernel"] = tuple(name for names in VARIANTS.values() for name in names)


@contextlib.contextmanager
def without(names):
    """Within the block, plain torch computes these operators."""
    eager = Eager()
    with contextlib.ExitStack() as stack:
        for name in names:
            place = next(place for place in (ops, layers, layers.FastBatchNorm2d)
                         if hasattr(place, name))
            stack.enter_context(mock.patch.object(place, name, getattr(eager, name)))
        yield


def network_alone(training, images, labels, update):
    """An epoch's passes through the network, on one batch that is there already."""
    size = training.args.batch_size if update else pruning.at_once(training.device)
    x = images[:size].float() / 255
    if training.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for y in labels.split(size):
        with attacks.frozen(training.model), training.autocast:
            attacks.input_grad(training.model, x[:len(y)], y)
        if update:
            with training.autocast:
                loss = F.cross_entropy(training.model(x[:len(y)]), y)
            training.opt.zero_grad()
            loss.backward()
            training.opt.step()
        else:
            with torch.no_grad(), training.autocast:
                training.model(x[:len(y)])


def measure(args, device):
    """A row for each variant: images/s of training and of scoring with selection."""
    args.dataset = args.dataset or ("cifar10" if device.type == "cuda" else "mnist")
    args.limit = args.limit or LIMIT
    training, _ = train.begin(recipe.of(args, device), device)
    images, labels, bar = training.dataset.images, training.dataset.labels, tqdm(disable=True)

    def score():
        with training.autocast:
            scores = pruning.score(training.model, images, labels, eps=training.args.epsilon)
        pruning.select(scores, "high", 0.4)

    jobs = {(variant, what): (names, call) for variant, names in VARIANTS.items() for what, call in
            (("training", lambda: training.epoch(0, bar)), ("scoring", score))}
    for what, update in (("training", True), ("scoring", False)):
        jobs["network alone", what] = (
            (), lambda u=update: network_alone(training, images, labels, u))
    seconds = {job: [] for job in jobs}
    for round_ in range(args.rounds + 1):  # the first round warms up
        for job, (names, call) in jobs.items():
            with without(names):
                start = time.perf_counter()
                call()
                sync(device)
                if round_:
                    seconds[job].append(time.perf_counter() - start)
    print(f"{recipe.title(training.args, len(labels))}, medians of {args.rounds} rounds\n"
          f"{'':30} training images/s     scoring images/s")
    rows, medians = [], {job: float(np.median(s)) for job, s in seconds.items()}
    for variant in (*VARIANTS, "network alone"):
        rows.append({"variant": variant})
        for what in ("training", "scoring"):
            rows[-1][what] = len(labels) / medians[variant, what]
            rows[-1][f"{what}_ratio"] = (medians["all kernels", what] / medians[variant, what])
        print("{variant:30} {training:9,.0f}  ({training_ratio:.2f})    {scoring:9,.0f}  "
              "({scoring_ratio:.2f})".format(**rows[-1]))
    return {**recipe.fields(training.args, len(labels)), "rounds": args.rounds, "rows": rows}
