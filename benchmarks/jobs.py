"""python -m benchmarks jobs: two runs side by side with half of the threads each, or in turn?

Both ways are the worker processes of `python -m experiments ... --jobs N`, and take turns. A run
trains as train.py does. The seconds of a way are from its first epoch to the end of its last.
"""
import tempfile
import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

from advprune import config, memory
from benchmarks import workload
from benchmarks.workers import Workers

RUNS, EPOCHS, ROUNDS = 2, 3, 3


def run(words, device):
    """(when the training begins [s], when it ends, the examples of an epoch).

    It begins after an epoch that warms up.
    """
    memory.keep_freed()  # as train.py does
    training, bar = workload.begun(words, device), tqdm(disable=True)
    training.epoch(0, bar)
    start = time.monotonic()
    for epoch in range(1, training.settings.epochs):
        training.epoch(epoch, bar)
    return start, time.monotonic(), len(training.kept)


def rate(count, words, device):
    """(images/s of RUNS trainings in so many processes, the examples of an epoch)."""
    spans, todo = [], RUNS
    with tempfile.TemporaryDirectory() as folder, Workers(count, run) as workers:
        while todo or workers.busy:
            while todo and workers.idle:
                workers.start(todo, Path(folder, f"{todo}.log"), words, device)
                todo -= 1
            spans += [span for _, span in workers.finished()]
    begins, ends, examples = zip(*spans, strict=True)
    in_turn = count == 1  # then the time between two runs, in which the second loads, is left out
    seconds = sum(ends) - sum(begins) if in_turn else max(ends) - min(begins)
    return EPOCHS * sum(examples) / seconds, examples[0]


def measure(args, device):
    """Images/s of both ways, and the median of their ratios."""
    words = workload.words(args, device, "--epochs", str(EPOCHS + 1))
    rows = []
    for _ in range(args.rounds):
        in_turn, n = rate(1, words, device)
        rows.append({"in_turn": in_turn, "side_by_side": rate(RUNS, words, device)[0]})
        print("in turn {in_turn:,.0f} images/s, side by side {side_by_side:,.0f}".format(
            **rows[-1]))
    return {**workload.fields(config.parse(words)[1], n), "runs": RUNS, "rounds": rows,
            "ratio": median(row["side_by_side"] / row["in_turn"] for row in rows)}
