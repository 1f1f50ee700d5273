"""python -m benchmarks ablation: what kernels and fast layers are worth in whole epochs.

Without a kernel there are the lines of plain torch that one would write instead; without a layer
of advprune/layers.py there is PyTorch's. A kernel of a layer goes with its layer. "network alone"
makes the same passes through the network and nothing else. All are ratios.
"""
import contextlib
import time
from statistics import median
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from advprune import attacks, layers, ops, pruning
from benchmarks import kernels, workload
from benchmarks.timing import sync

ROUNDS = 7  # epochs of each variant


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


# name -> (the layer, its method, what that does without it)
LAYERS = {"conv_input_grad": (layers.GreyConv2d, "forward", nn.Conv2d.forward),
          "batch_norm_relu": (layers.FastBatchNorm2d, "takes", lambda layer, rows: False),
          "DnnLinear": (layers.DnnLinear, "forward", nn.Linear.forward),
          "FastFlatten": (layers.FastFlatten, "forward", nn.Flatten.forward)}
OPERATORS = (("rs_start", "fgsm_step"), ("augment",), ("cross_entropy_scores",), ("select_kept",))


def variants(model):
    """Variant -> what it goes without; of the layers only those that this network has."""
    kinds = {type(layer) for layer in model.modules()}
    parts = [*OPERATORS, *((name,) for name, (kind, *_) in LAYERS.items() if kind in kinds)]
    return {"all kernels": (), **{f"without {', '.join(names)}": names for names in parts},
            "no kernel": tuple(name for names in parts for name in names)}


@contextlib.contextmanager
def without(names):
    """Within the block, plain torch computes these operators and layers."""
    eager = Eager()
    with contextlib.ExitStack() as stack:
        for name in names:
            place, method, other = LAYERS.get(name) or (ops, name, getattr(eager, name))
            stack.enter_context(mock.patch.object(place, method, other))
        yield


def network_alone(training, images, labels, update):
    """An epoch's passes through the network, on one batch that is there already."""
    size = training.settings.batch_size if update else pruning.at_once(training.device)
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
    training = workload.begun(workload.words(args, device), device)
    images, labels, bar = training.dataset.images, training.dataset.labels, tqdm(disable=True)

    def score():
        with training.autocast:
            scores = pruning.score(training.model, images, labels, eps=training.settings.epsilon)
        pruning.select(scores, "high", 0.4)

    def timed(names, call):
        with without(names):
            start = time.perf_counter()
            call()
            sync(device)
            return time.perf_counter() - start

    calls = {(variant, what): (names, call)
             for variant, names in variants(training.model).items()
             for what, call in (("training", lambda: training.epoch(0, bar)), ("scoring", score))}
    for what, update in (("training", True), ("scoring", False)):
        calls["network alone", what] = (
            (), lambda update=update: network_alone(training, images, labels, update))
    rounds = [{key: timed(*call) for key, call in calls.items()}
              for _ in range(args.rounds + 1)][1:]  # the first warms up
    rates = {key: len(labels) / median(seconds[key] for seconds in rounds) for key in calls}
    rows = [row_of(variant, rates) for variant, what in calls if what == "training"]
    return {**workload.fields(training.settings, len(labels)), "rounds": args.rounds,
            "rows": rows}


def row_of(variant, rates):
    """Its images/s, and their ratios to those with all kernels."""
    row = {"variant": variant}
    for what in ("training", "scoring"):
        row[what] = rates[variant, what]
        row[f"{what}_ratio"] = rates[variant, what] / rates["all kernels", what]
    return row
