"""The peak memory of training on the examples in a file: a process of its own for scale.py.

    python -m benchmarks.memory FILE [FLAGS OF train.py]

It trains, scores, drops, and trains on the rest. It prints as JSON, in MiB, the size of the data,
what the process had used before it read them, and its peak. On a GPU the peak is the GPU's.
"""
import json
import resource
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import train
from advprune import cli, data, settings

MIB = 2 ** 20


def peak(device):
    """The most memory in MiB that this process has used so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:  # ru_maxrss would also count the process that started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):  # macOS counts in bytes, and counts this process alone
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def main():
    path, *flags = sys.argv[1:]
    used = settings.parse(flags)
    device = cli.device(used.device)
    before, part = peak(device), torch.load(path, weights_only=True)
    images, labels = part["images"].to(device), part["labels"].to(device)
    classes = [str(k) for k in range(part["classes"])]
    dataset = data.Dataset(used.dataset, images, labels, images[:1], labels[:1], classes,
                           len(labels))
    used.network = settings.network(used, images.shape[1], len(classes), images.shape[-1])
    training, bar = train.Training(used, dataset, device), tqdm(disable=True)
    training.epoch(0, bar)
    training.prune(1)
    training.epoch(1, bar)
    print(json.dumps({"examples": len(labels), "before": before, "peak": peak(device),
                      "data": (images.nbytes + labels.nbytes) / MIB}))


if __name__ == "__main__":
    main()
