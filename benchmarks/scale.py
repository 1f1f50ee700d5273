"""python -m benchmarks scale: does training time follow the examples seen?

This is Figure 5 of Kaufmann et al. 2022. Runs with p = 0 to 0.8 train epoch by epoch in turns, and
each epoch begins with another of them. An epoch after pruning is compared with the one on all data
of the same turn, and the median of these ratios counts. So a machine that slows down slows both.
Scoring and the guard are counted apart. Then processes of their own train on a quarter, a half and
all of the examples, for their peak memory.
"""
import resource
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

import train
from advprune import config, console, data, models
from advprune.errors import UserError
from benchmarks import workload
from benchmarks.timing import apart

SHARES, EPOCHS = (0.0, 0.2, 0.4, 0.6, 0.8), 10  # dropped
SIZES = (0.25, 0.5, 1.0)  # of the data set, for the memory
MIB = 2**20


def flags_of(p, epochs):
    """The flags of the run that drops p after three tenths of its epochs."""
    after = max(1, round(0.3 * epochs))
    pruning = ["--prune", "high", "--p", str(p), "--epoch", str(after)] if p else []
    return ["--epochs", str(epochs), *pruning]


def in_turns(args, device):
    """The finished trainings, one for each share dropped."""
    settings = [config.parse(workload.words(args, device, *flags_of(p, args.epochs)))[1]
                for p in SHARES]
    dataset = data.of_run(settings[0], args.data_dir, device=device)
    if (n := len(dataset.labels)) == round(SHARES[-1] * n):
        raise UserError(f"dropping {SHARES[-1]:.0%} of {n} examples leaves none; give a larger "
                        "--limit")
    network = models.spec(settings[0], dataset)
    warm, *trainings = (train.Training(each, dataset, device, network)
                        for each in [settings[0], *settings])
    bar = tqdm(disable=True)
    warm.kept = warm.kept[:2000]
    warm.epoch(0, bar)
    for epoch in range(args.epochs):
        first = epoch % len(trainings)
        for training in trainings[first:] + trainings[:first]:
            if epoch == training.settings.epoch:
                training.prune(epoch)
            training.epoch(epoch, bar)
    return trainings


def memory(args, device, dataset):
    """Rows of peak memory in MiB: a process trains on n examples, scores, and trains on 60 %."""
    n, rows = len(dataset.labels), []
    words = workload.words(args, device, *flags_of(0.4, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.pt")
        for part in sorted({max(3, round(n * share)) for share in SIZES}):
            ids = torch.arange(part)
            torch.save({"images": dataset.images[ids].cpu(), "labels": dataset.labels[ids].cpu(),
                        "classes": dataset.classes}, path)
            with apart(pruned_training) as other:
                rows.append(other(path, words, str(device)))
    return rows


def pruned_training(path, words, device):
    """Train on the examples in this file, score, drop, train on: the memory in MiB.

    "before" is what this process had used before it read the data.
    """
    device = console.device(device)
    before, read = peak(device), torch.load(path, weights_only=True)
    images, labels = read["images"].to(device), read["labels"].to(device)
    settings = config.parse(words)[1]
    dataset = data.Dataset(settings.dataset, images, labels, images[:1], labels[:1],
                           read["classes"], len(labels))
    network = models.spec(settings, dataset)
    training, bar = train.Training(settings, dataset, device, network), tqdm(disable=True)
    training.epoch(0, bar)
    training.prune(1)
    training.epoch(1, bar)
    return {"examples": len(labels), "before": before, "peak": peak(device),
            "data": (images.nbytes + labels.nbytes) / MIB}


def peak(device):
    """The most memory in MiB that this process has used so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:  # ru_maxrss would also count the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):  # macOS counts in bytes, and counts this process alone
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


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
    from_ratios(rows, trainings[-1].settings.epoch)
    examples, seconds = ([row[name] for row in rows] for name in ("examples", "seconds"))
    slope, intercept = map(float, np.polyfit(examples, seconds, 1))  # the least-squares line
    first, prune_epoch = trainings[0], trainings[-1].settings.epoch
    settings, n = first.settings, len(first.dataset.labels)
    return {**workload.fields(settings, n), "epochs": args.epochs, "prune_epoch": prune_epoch,
            "rows": rows, "intercept": intercept, "slope": slope,
            "memory": memory(args, device, first.dataset)}


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
