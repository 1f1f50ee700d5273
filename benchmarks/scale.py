"""benchmark.py scale: does training time follow the examples seen? (Kaufmann et al., Figure 5)

Runs with p = 0 to 0.8 train epoch by epoch in turns, and each epoch begins with another of them.
An epoch after pruning is compared with the one on all data of the same turn, and the median of
these ratios counts. So a machine that slows down slows both. Scoring and the guard are counted
apart. Then processes of their own train on a quarter, a half and all of the examples, for their
peak memory.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

import train
from advprune import cli, inputs, settings
from benchmarks import recipe

SHARES, EPOCHS = (0.0, 0.2, 0.4, 0.6, 0.8), 10  # dropped
SIZES = (0.25, 0.5, 1.0)  # of the data set, for the memory
CHECKOUT = Path(__file__).resolve().parent.parent


def line(x, y):
    """(intercept, slope) of the least-squares line through the points; x must vary."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    return float(y.mean() - slope * x.mean()), float(slope)


def flags_of(p, epochs):
    """The flags of the run that drops p after three tenths of its epochs."""
    after = max(1, round(0.3 * epochs))
    pruning = ["--prune", "high", "--p", str(p), "--epoch", str(after)] if p else []
    return ["--epochs", str(epochs), *pruning]


def in_turns(args, device):
    """The finished trainings, one for each share dropped."""
    trainings = []
    for p in SHARES:
        used = recipe.of(args, device, *flags_of(p, args.epochs))
        dataset = trainings[0].dataset if trainings else inputs.dataset(used, device)
        if round(p * len(dataset.labels)) == len(dataset.labels):
            raise cli.UserError(f"dropping {p:.0%} of {len(dataset.labels)} examples leaves none; "
                                "give a larger --limit")
        used.network = settings.network(used, dataset.images.shape[1], len(dataset.classes),
                                        dataset.images.shape[-1])
        trainings.append(train.Training(used, dataset, device))
    bar = tqdm(disable=True)
    warm = train.Training(trainings[0].args, trainings[0].dataset, device)
    warm.kept = warm.kept[:2000]
    warm.epoch(0, bar)
    for epoch in range(args.epochs):
        first = epoch % len(trainings)
        for training in trainings[first:] + trainings[:first]:
            if epoch == training.args.epoch:
                training.prune(epoch)
            training.epoch(epoch, bar)
    return trainings


def memory(args, device, training):
    """Rows of peak memory in MiB: a process trains on n examples, scores, and trains on 60 %."""
    n, rows = len(training.dataset.labels), []
    flags = recipe.words(args, device) + flags_of(0.4, 2)
    for part in sorted({max(3, round(n * share)) for share in SIZES}):
        ids = torch.arange(part)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.pt"
            torch.save({"images": training.dataset.images[ids].cpu(),
                        "labels": training.dataset.labels[ids].cpu(),
                        "classes": len(training.dataset.classes)}, path)
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", str(path), *flags], cwd=CHECKOUT,
                stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def measure(args, device):
    """Seconds and examples of each run, the line through them, and peak memory."""
    args.epochs = args.epochs or EPOCHS
    trainings = in_turns(args, device)
    rows = []
    for p, training in zip(SHARES, trainings, strict=True):
        seconds = training.seconds
        rows.append({"p": p, "examples": sum(row["examples"] for row in training.rows),
                     "train_seconds": seconds["train"], "prune_seconds": seconds["prune"],
                     "guard_seconds": seconds["guard"],
                     "epoch_seconds": [row["seconds"] for row in training.rows]})
    from_ratios(rows, trainings[-1].args.epoch)
    intercept, slope = line([row["examples"] for row in rows], [row["seconds"] for row in rows])
    used, n = trainings[0].args, len(trainings[0].dataset.labels)
    record = {**recipe.fields(used, n), "epochs": args.epochs,
              "prune_epoch": trainings[-1].args.epoch, "rows": rows, "intercept": intercept,
              "slope": slope, "memory": memory(args, device, trainings[0])}
    report(record, recipe.title(used, n))
    return record


def from_ratios(rows, before):
    """Add seconds to each row, and how far they are from those of all data times its examples.

    rows[0] is of all data. The others have `before` epochs on all data, then those on the rest.
    """
    all_data = rows[0]["epoch_seconds"][before:]
    for row in rows:
        after = row["epoch_seconds"][before:]
        ratio = median(a / b for a, b in zip(after, all_data, strict=True))
        row["seconds"] = median(all_data) * (before + len(after) * ratio)
        share = row["examples"] / rows[0]["examples"]
        row["deviation"] = row["seconds"] / (share * rows[0]["seconds"]) - 1


def report(record, title):
    print(f"{title}, {record['epochs']} epochs, pruned after {record['prune_epoch']}, in turns\n"
          "  p   examples seen  seconds  off proportional  scoring  guard")
    for row in record["rows"]:
        print("{p:.1f} {examples:15,} {seconds:8.2f} {deviation:17.1%} {prune_seconds:8.2f} "
              "{guard_seconds:6.2f}".format(**row))
    print(f"\n{'examples':>10} {'data, MiB':>11} {'peak, MiB':>11} {'before, MiB':>12}")
    for row in record["memory"]:
        print("{examples:10,} {data:11.1f} {peak:11.1f} {before:12.1f}".format(**row))
    print("seconds = {intercept:.3f} + {0:.3f} x 1,000 examples".format(
        1000 * record["slope"], **record))
