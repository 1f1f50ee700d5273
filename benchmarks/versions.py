"""python -m benchmarks versions, and training --against: another checkout and this one in turn.

Each checkout has a process of its own (checkout.py). In every second round the other one begins.
"""
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from advprune import config
from advprune.errors import UserError
from advprune.run import CHECKOUT
from benchmarks import workload

ROUNDS = 9


class Side:
    """The process of a checkout."""

    def __init__(self, folder, words, stack):
        self.folder = folder
        command = [sys.executable, Path(__file__).with_name("checkout.py"), folder, *words]
        self.process = stack.enter_context(subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        stack.callback(self.process.stdin.close)
        where, self.kernels, self.names = self.read()
        if Path(where).resolve() != folder:
            raise UserError(f"{folder} is no checkout: its operators would come from {where}")

    def read(self):
        if not (line := self.process.stdout.readline()):
            raise UserError(f"{self.folder} could not do this; its error is above")
        return json.loads(line)

    def ask(self, number):
        """(the time, the checksum of the result) of what has this number."""
        print(number, file=self.process.stdin, flush=True)
        return self.read()


def in_turn(against, words, rounds, warm_up=0):
    """(the names of what is done, for each of them the pairs of (time, checksum) of each round).

    The other checkout's is the first of a pair. words: for checkout.py, after the folder.
    """
    with contextlib.ExitStack() as stack:
        other, ours = (Side(folder, words, stack)
                       for folder in (Path(against).resolve(), CHECKOUT))
        if other.kernels != ours.kernels:
            raise UserError(f"{against} uses {other.kernels} kernels, and this checkout "
                            f"{ours.kernels}; run `make kernels` in both")
        pairs = [[] for _ in ours.names]
        for round_ in range(warm_up + rounds):
            for number, found in enumerate(pairs):
                sides = (ours, other) if round_ % 2 else (other, ours)
                answers = {side: side.ask(number) for side in sides}
                found.append((answers[other], answers[ours]))
        return ours.names, [found[warm_up:] for found in pairs]


def compared(pairs):
    """(the other's median time, ours, the median of the ratios, whether all bits are the same)."""
    times = [[side[0] for side in sides] for sides in zip(*pairs, strict=True)]
    return (*map(median, times), median(ours / other for other, ours in zip(*times, strict=True)),
            all(other[1] == ours[1] for other, ours in pairs))


def commit(folder):
    """The commit that is checked out there; None if git knows of none."""
    done = subprocess.run(["git", "-C", folder, "rev-parse", "--short=12", "HEAD"],
                          capture_output=True, text=True)
    return done.stdout.strip() or None


def measure(args, device):
    """A row for each operator and size: both times, and the median of their ratios."""
    names, pairs = in_turn(args.against, ["operators", str(device)], args.rounds)
    rows = []
    print(f"{'operator':<25} {'elements':>11} {'other, us':>10} {'us':>10} {'ratio':>6}  bits")
    for (name, n), found in zip(names, pairs, strict=True):
        other, here, ratio, same = compared(found)
        rows.append({"operator": name, "n": n, "other_us": other, "us": here, "ratio": ratio,
                     "same_bits": same})
        print(f"{name:<25} {n:>11,} {other:>10,.1f} {here:>10,.1f} {ratio:>6.2f}  "
              f"{'equal' if same else 'DIFFER'}")
    return {"other": commit(args.against), "rounds": args.rounds, "rows": rows}


def training(args, device):
    """Epochs of training of both, one after another: seconds, and whether the weights are equal.

    The first epoch warms up. The weights are compared after each.
    """
    words = workload.words(args, device, "--epochs", str(args.rounds + 1))
    ((_, n),), (pairs,) = in_turn(args.against, ["training", str(device), *words], args.rounds,
                                  warm_up=1)
    other, here, ratio, same = compared(pairs)
    ratios = sorted(ours[0] / theirs[0] for theirs, ours in pairs)
    settings = config.parse(words)[1]
    record = {**workload.fields(settings, n), "other": commit(args.against),
              "rounds": args.rounds, "other_seconds": other, "seconds": here, "ratio": ratio,
              "ratio_range": [ratios[0], ratios[-1]], "same_weights": same,
              "weights": pairs[-1][1][1]}
    print(f"{workload.title(settings, n)}, medians of {args.rounds} epochs in turn\n"
          "an epoch: the other checkout {other_seconds:.3f} s, this one {seconds:.3f} s; ratio "
          "{ratio:.3f} ({0:.3f} to {1:.3f}); weights {2}".format(
              *record["ratio_range"], "equal" if same else "DIFFER", **record))
    return record
