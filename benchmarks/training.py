"""python -m benchmarks training: where an epoch's time goes, and the least each part can take.

An epoch is train.py's own, without the guard that follows it. A round has an epoch as users run
it, one whose parts are timed, its floor, and an epoch of fast_adversarial's loop. What no part
covers is "the rest": Python, noise and step of the attack, losses, bookkeeping. Its floor is 0.

The floor is the same passes, alone. A pass has the shapes, the precision and the mode of the one
in training, and reads a batch that is there already. Of the memory layouts, and of our layers and
PyTorch's own, the fastest counts. So a training that is slow for its layout or for one of our
layers does not lower its own bar.
"""
import contextlib
import copy
from statistics import median
from unittest import mock

import torch
from torch import nn
from tqdm import tqdm

from advprune import attacks, layers
from benchmarks import fast_adversarial, workload
from benchmarks.layouts import LAYOUTS
from benchmarks.timing import Clock, apart

ROUNDS = 7
NETWORK = ("attack forward", "attack backward", "update forward", "update backward")
PARTS = (*NETWORK, "optimiser", "data")


# --- the parts of an epoch

@contextlib.contextmanager
def timed_parts(training, clock):
    """Within the block, an epoch of the training tells the clock its parts."""
    def before(module, inputs):
        attack = inputs[0].requires_grad or not torch.is_grad_enabled()
        started.append(clock.start("attack forward" if attack else "update forward"))

    def after(*_):
        if started.pop():
            clock.stop()

    started, patch = [], mock.patch.object
    with contextlib.ExitStack() as stack:
        for place, name, part in (
                (torch.autograd, "grad", "attack backward"),
                (torch.Tensor, "backward", "update backward"),
                (training.opt, "step", "optimiser"), (training.dataset, "batch", "data"),
                (training.guard, "measure", "guard")):
            timed = clock.timed(part, getattr(place, name))
            stack.enter_context(patch(place, name, timed))
        for hook in (training.model.register_forward_pre_hook(before, prepend=True),
                     training.model.register_forward_hook(after)):
            stack.callback(hook.remove)
        yield


def parts_of(training, bar):
    """An epoch with its parts timed: (its seconds without the guard, the Clock)."""
    clock = Clock(training.device)
    training.guard.due.add(1)  # also if few examples do not pay for it
    with timed_parts(training, clock):
        training.epoch(0, bar)
    return training.rows[-1]["seconds"], clock


# --- the floor

def networks(model):
    """name -> (copy of the model, layout): all ways to make the same passes."""
    made = {}
    for layout, format_ in LAYOUTS.items():
        made[layout] = layers.lay_out(copy.deepcopy(model), format_), format_
        theirs = layers.lay_out(layers.plain(copy.deepcopy(model)), format_)
        made[f"{layout}, PyTorch's layers"] = theirs, format_
    return made


def optimizers(training):
    """name -> an optimiser of a copy of the weights, with gradients, in each implementation."""
    made = {}
    for name in ("default", "foreach", "fused"):
        weights = [nn.Parameter(p.detach().clone()) for p in training.model.parameters()]
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        try:
            how = {} if name == "default" else {name: True}
            optimizer = workload.remade(training.opt, weights, **how)
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
        a, self.device, self.autocast = training.settings, training.device, training.autocast
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
        def seconds(name, part):
            return median(clocks[name].seconds[part] for clocks in rounds)

        network = min(self.networks, key=lambda name: sum(seconds(name, part) for part in NETWORK))
        optimizer = min(self.optimizers, key=lambda name: seconds(name, "optimiser"))
        chosen = {**dict.fromkeys(NETWORK, network), "optimiser": optimizer, "data": "data"}
        calls = {part: rounds[0][name].calls[part] for part, name in chosen.items()}
        return {part: seconds(name, part) for part, name in chosen.items()}, chosen, calls


# --- both

def same_passes(epoch, floor):
    """Raise RuntimeError unless an epoch and its floor made the same passes."""
    for part in PARTS:
        if epoch[part] != floor[part]:
            raise RuntimeError(f"{part}: {epoch[part]} times in an epoch and {floor[part]} times "
                               "in its floor; this module no longer fits train.py")


def measure(args, device):
    """Medians over rounds of the parts of an epoch, of their floors, and of the loop's epoch."""
    words = tuple(workload.words(args, device))
    training, bar = workload.begun(words, device), tqdm(disable=True)
    a = training.settings
    batches = training.dataset.batches(training.kept, a.batch_size, a.seed, 0, a.extra_fraction,
                                       training.smallest)
    floor, rounds = Floor(training, batches), []
    with apart(fast_adversarial.seconds) as loop:
        for round_ in range(args.rounds + 1):
            training.epoch(0, bar)
            ours = training.rows[-1]["seconds"]
            seconds, clock = parts_of(training, bar)
            floors = floor.round()
            theirs = loop(words, device)
            if round_:  # the first warms up
                rounds.append((ours, seconds, clock, floors, theirs))
    n = sum(floor.sizes)
    return {**workload.fields(a, n), "rounds": args.rounds, **summary(rounds, floor, n)}


def summary(rounds, floor, n):
    """The numbers of a record, of n examples an epoch."""
    ours, seconds, clocks, floors, theirs = zip(*rounds, strict=True)
    least, fastest, calls = floor.choose(floors)
    same_passes(clocks[0].calls, calls)
    totals = [sum(clocks[fastest[part]].seconds[part] for part in PARTS) for clocks in floors]
    shares = [total / whole for total, whole in zip(totals, seconds, strict=True)]
    epoch = median(seconds)
    rows = [{"part": part, "seconds": median(c.seconds[part] for c in clocks),
             "floor": least[part], "calls": calls[part]} for part in PARTS]
    rows.append({"part": "the rest", "seconds": epoch - sum(row["seconds"] for row in rows),
                 "floor": 0.0})
    return {
        "rows": rows, "epoch_seconds": epoch,
        "floor_seconds": sum(least.values()), "guard_seconds": median(
            c.seconds["guard"] for c in clocks),
        "fastest": {"network": fastest["attack forward"], "optimiser": fastest["optimiser"]},
        "images_per_second": n / median(ours),
        "reference_images_per_second": n / median(theirs),
        "times_reference": median(theirs) / median(ours),
        "share_of_floor": sum(least.values()) / epoch,
        "share_of_floor_range": [min(shares), max(shares)]}
