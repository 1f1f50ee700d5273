"""The truth about a training label as a score: 1 where it is not the data set's own, else 0.

    [arms.oracle]
    score = "oracle.py:mnist"
    prune = "high"

A study of wrong labels compares other scores with it. The data set lies in data/.
"""
from functools import cache
from pathlib import Path

from advprune import data

load = cache(data.load)


def known(name):
    """The score on the data set of this name."""
    def wrong(model, images, labels, ids):
        own = load(name, Path(__file__).parent.parent / "data").labels
        return (labels != own.to(labels.device)[ids]).float()
    return wrong


digits, mnist, fashion_mnist, cifar10 = map(known, ("digits", "mnist", "fashion-mnist", "cifar10"))
