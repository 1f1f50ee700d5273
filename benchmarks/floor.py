"""The least time that the parts of a training epoch can take here: the same passes, alone.

A pass has the shapes, the precision and the mode of the one in training, and reads a batch that is
there already. Of the memory layouts, and of our layers and PyTorch's own, the fastest counts. So a
training that is slow for its layout or for one of our layers does not lower its own bar.
"""
import copy
import inspect

import torch
from torch import nn

from advprune import attacks, layers
from benchmarks.timing import Clock

NETWORK = ("attack forward", "attack backward", "update forward", "update backward")
PARTS = (*NETWORK, "optimiser", "data")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def networks(model):
    """name -> (copy of the model, layout): all ways to make the same passes."""
    made = {}
    for layout, format_ in LAYOUTS.items():
        made[layout] = layers.lay_out(copy.deepcopy(model), format_), format_
        theirs = layers.lay_out(layers.plain(copy.deepcopy(model)), format_)
        made[f"{layout}, PyTorch's layers"] = theirs, format_
    return made


def remade(optimizer, weights, **how):
    """An optimiser of these weights with the same settings, in PyTorch's default implementation.

    how, such as fused=True, names another one.
    """
    known = inspect.signature(type(optimizer)).parameters
    settings = {**optimizer.defaults, "foreach": None, "fused": None}
    settings = {name: value for name, value in settings.items() if name in known}
    return type(optimizer)(weights, **{**settings, **how})


def optimizers(training):
    """name -> an optimiser of a copy of the weights, with gradients, in each implementation."""
    made = {}
    for name in ("default", "foreach", "fused"):
        weights = [nn.Parameter(p.detach().clone()) for p in training.model.parameters()]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        try:
            how = {} if name == "default" else {name: True}
            optimizer = remade(training.opt, weights, **how)
            optimizer.step()  # makes its state
        except (TypeError, RuntimeError):  # not for this optimiser or device
            if name == "default":
                raise
        else:
            made[name] = optimizer
    return made


class Floor:
    """The passes of an epoch of this training, to be timed once in every round."""

    def __init__(self, training, batches):
        """batches: the ids of each of the epoch's."""
        a, self.device, self.autocast = training.args, training.device, training.autocast
        self.sizes = [len(ids) for ids in batches]
        self.x = training.dataset.batch(max(batches, key=len), a.seed, 0, a.pad, a.flip)
        self.pixels = (self.x * 255).to(torch.uint8)
        self.networks = networks(training.model.train())
        self.optimizers = optimizers(training)
        training.opt.zero_grad()

    def round(self):
        """name -> Clock, for each way to make the passes or the steps, and for the data."""
        clocks = {name: self._passes(*network) for name, network in self.networks.items()}
        for name, optimizer in self.optimizers.items():
            clocks[name] = clock = Clock(self.device)
            for _ in self.sizes:
                with clock.part("optimiser"):
                    optimizer.step()
        clocks["data"] = clock = Clock(self.device)
        for size in self.sizes:
            pixels, batch = self.pixels[:size], torch.empty_like(self.x[:size])
            with clock.part("data"):
                batch.copy_(pixels)  # reads a byte and writes a float for each element
        return clocks

    def _passes(self, model, layout):
        clock, gradients = Clock(self.device), {}
        model.train()
        for size in self.sizes:
            x = self.x[:size].contiguous(memory_format=layout)
            with attacks.frozen(model):
                start = x.clone().requires_grad_()
                with self.autocast, clock.part("attack forward"):
                    logits = model(start)
                if size not in gradients:
                    gradients[size] = torch.randn_like(logits) / size
                with clock.part("attack backward"):
                    torch.autograd.grad(logits, start, gradients[size])
            for weight in model.parameters():
                weight.grad = None
            with self.autocast, clock.part("update forward"):
                logits = model(x)
            with clock.part("update backward"):
                torch.autograd.backward(logits, gradients[size])
        return clock

    def choose(self, rounds):
        """From the Clocks of several rounds: (seconds of each part, what was fastest, calls).

        The seconds are medians. The network's passes are all made in one way.
        """
        def median(name, part):
            return float(torch.tensor([clocks[name].seconds[part] for clocks in rounds],
                                      dtype=torch.float64).quantile(0.5))

        network = min(self.networks, key=lambda name: sum(median(name, p) for p in NETWORK))
        optimizer = min(self.optimizers, key=lambda name: median(name, "optimiser"))
        chosen = {**dict.fromkeys(NETWORK, network), "optimiser": optimizer, "data": "data"}
        seconds = {part: median(name, part) for part, name in chosen.items()}
        return seconds, chosen, {p: rounds[0][name].calls[p] for p, name in chosen.items()}
