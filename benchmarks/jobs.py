"""benchmark.py jobs: two runs side by side with a thread each, or one after another with two?

Both ways are `reproduce.py --jobs`'s own worker processes, and take turns. A run trains as
train.py does. The seconds of a way are from its first epoch to the end of its last.
"""
import os
import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

import train
from advprune import jobs, memory
from benchmarks import recipe

RUNS, EPOCHS, ROUNDS, LIMIT = 2, 3, 3, 10_000


def run(args, device, epochs):
    """The times [s] at which a training begins and ends, after an epoch that warms up."""
    memory.keep_freed()  # as train.py does
    training, _ = train.begin(recipe.of(args, device, "--epochs", str(epochs + 1)), device)
    bar = tqdm(disable=True)
    training.epoch(0, bar)
    start = time.monotonic()
    for epoch in range(1, epochs + 1):
        training.epoch(epoch, bar)
    return start, time.monotonic()


def seconds(workers, log, *args):
    """The seconds that RUNS trainings take with these workers."""
    spans, todo = [], RUNS
    while todo or workers.busy:
        while todo and workers.idle:
            workers.start(todo, log, *args)
            todo -= 1
        spans += [span for _, span in workers.finished()]
    if len(workers.idle) == 1:
        return sum(end - start for start, end in spans)
    return max(end for _, end in spans) - min(start for start, _ in spans)


def measure(args, device):
    """Images/s of both ways, and the median of their ratios."""
    args.limit = args.limit or LIMIT
    used = train.begin(recipe.of(args, device), device)[0].args
    rows, log = [], Path(os.devnull)
    for _ in range(args.rounds):
        taken = []
        for count in (1, RUNS):
            with jobs.Workers(count, run) as workers:
                taken.append(seconds(workers, log, args, device, EPOCHS))
        rows.append({"in_turn": RUNS * EPOCHS * args.limit / taken[0],
                     "side_by_side": RUNS * EPOCHS * args.limit / taken[1]})
        print("in turn {in_turn:,.0f} images/s, side by side {side_by_side:,.0f}".format(
            **rows[-1]))
    return {**recipe.fields(used, args.limit), "runs": RUNS, "rounds": rows,
            "ratio": median(row["side_by_side"] / row["in_turn"] for row in rows)}
