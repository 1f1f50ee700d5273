"""benchmark.py training: where the time of an epoch goes, and the least that each can take.

An epoch is train.py's own, without the guard that follows it. A round has an epoch as users run
it, one whose parts are timed, its floor (floor.py), and an epoch of fast_adversarial's loop
(reference.py). What no part covers is "the rest": Python, noise and step of the attack, losses,
bookkeeping. Its floor is 0.
"""
import contextlib
from statistics import median
from unittest import mock

import torch
from tqdm import tqdm

import train
from benchmarks import recipe, reference
from benchmarks.floor import PARTS, Floor
from benchmarks.timing import Clock, apart

LIMIT, ROUNDS = 10_000, 7  # examples an epoch, and rounds


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
    with timed_parts(training, clock):
        training.epoch(0, bar)
    return training.rows[-1]["seconds"], clock


def same_passes(epoch, floor):
    """Raise RuntimeError unless an epoch and its floor made the same passes."""
    for part in PARTS:
        if epoch[part] != floor[part]:
            raise RuntimeError(f"{part}: {epoch[part]} times in an epoch and {floor[part]} times "
                               "in its floor; benchmarks/ no longer fits train.py")


def measure(args, device):
    """Medians over rounds of the parts of an epoch, of their floors, and of the loop's epoch."""
    args.limit = args.limit or LIMIT
    training, _ = train.begin(recipe.of(args, device), device)
    a, bar = training.args, tqdm(disable=True)
    batches = training.dataset.batches(training.kept, a.batch_size, a.seed, 0, a.extra_fraction,
                                       training.smallest)
    floor, rounds = Floor(training, batches), []
    with apart(reference.seconds) as loop:
        for round_ in range(args.rounds + 1):
            training.epoch(0, bar)
            ours = training.rows[-1]["seconds"]
            seconds, clock = parts_of(training, bar)
            floors = floor.round()
            theirs = loop(tuple(recipe.words(args, device)), device)
            if round_:  # the first warms up
                rounds.append((ours, seconds, clock, floors, theirs))
    ours, seconds, clocks, floors, theirs = zip(*rounds, strict=True)
    least, fastest, calls = floor.choose(floors)
    same_passes(clocks[0].calls, calls)
    totals = [sum(clocks[fastest[part]].seconds[part] for part in PARTS) for clocks in floors]
    shares = [total / whole for total, whole in zip(totals, seconds, strict=True)]
    n, epoch = sum(floor.sizes), median(seconds)
    rows = [{"part": part, "seconds": median(c.seconds[part] for c in clocks),
             "floor": least[part], "calls": calls[part]} for part in PARTS]
    rows.append({"part": "the rest", "seconds": epoch - sum(row["seconds"] for row in rows),
                 "floor": 0.0})
    record = {
        **recipe.fields(a, n), "rounds": args.rounds, "rows": rows, "epoch_seconds": epoch,
        "floor_seconds": sum(least.values()), "guard_seconds": median(
            c.seconds["guard"] for c in clocks),
        "fastest": {"network": fastest["attack forward"], "optimiser": fastest["optimiser"]},
        "images_per_second": n / median(ours),
        "reference_images_per_second": n / median(theirs),
        "times_reference": median(theirs) / median(ours),
        "share_of_floor": sum(least.values()) / epoch,
        "share_of_floor_range": [min(shares), max(shares)]}
    report(record, recipe.title(a, n))
    return record


def report(record, title):
    print(f"{title}, medians of {record['rounds']} rounds\n"
          f"{'':16}  seconds  of the epoch    floor  floor / part")
    for row in record["rows"]:
        share = row["seconds"] / record["epoch_seconds"]
        print(f"{row['part']:16} {row['seconds']:8.3f} {share:12.1%} {row['floor']:10.3f} "
              + (f"{row['floor'] / row['seconds']:10.2f}" if row["floor"] else f"{'-':>10}"))
    print(f"{'epoch':16} {record['epoch_seconds']:8.3f} {1:12.1%} {record['floor_seconds']:10.3f} "
          f"{record['share_of_floor']:10.2f}\n"
          "guard, after the epoch: {guard_seconds:.3f} s. Floor: network {network}, optimiser "
          "{optimiser}".format(**record, **record["fastest"]))
    low, high = record["share_of_floor_range"]
    print("share of the floor {share_of_floor:.2f} ({low:.2f} to {high:.2f} in single rounds); "
          "{images_per_second:,.0f} images/s, {times_reference:.2f} times the reference loop's "
          "{reference_images_per_second:,.0f}".format(low=low, high=high, **record))
