"""Wrong labels of a study: how they are made, and what became of them."""
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from advprune import data, files
from advprune.run import read_config


def symmetric(labels, classes, share, seed):
    """The labels [N], of which round(share N), chosen by the seed, are any other class."""
    generator = np.random.default_rng(seed)
    wrong = generator.permutation(len(labels))[:round(share * len(labels))]
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + generator.integers(1, classes, len(wrong))) % classes
    return noisy


def share_of(named):
    """The share of wrong labels that symmetric-SHARE asks for; None if it is a file's name."""
    found = re.fullmatch(r"symmetric-(0?\.\d+)", named)
    return found and float(found[1])


def file_of(settings, seed, folder, data_dir):
    """The file of labels that a study's settings mean; symmetric-SHARE is made in the folder."""
    named = settings["labels"]
    if (share := share_of(named)) is None:
        return named

    def make(path):
        own = data.load(settings["dataset"], data_dir)
        noisy = symmetric(own.labels.numpy(), len(own.classes), share, seed)
        with open(path, "wb") as file:
            np.save(file, noisy)

    return str(files.made_once(Path(folder) / f"{named}-{seed}.npy", make))


def wrong(folder, data_dir):
    """How many labels a finished run kept and dropped, and how many of them are wrong.

    Wrong is what differs from the data set's own label. {} for a run with these.
    """
    used = read_config(folder)["settings"]
    if not used.labels:
        return {}
    given, own = (data.of_run(settings, data_dir).labels
                  for settings in (used, replace(used, labels=None)))
    kept, scores = torch.ones(len(own), dtype=torch.bool), Path(folder) / "scores.npz"
    if scores.exists():
        with np.load(scores) as file:
            kept = torch.zeros_like(kept).index_fill(0, torch.from_numpy(file["kept"]), True)
    return {"wrong": {name: {"labels": int(part.sum()), "wrong": int((given != own)[part].sum())}
                      for name, part in (("kept", kept), ("dropped", ~kept))}}
