"""EL2N (Paul et al. 2021): the length of the error vector, softmax less one-hot label.

    python train.py --score examples/strategies/el2n.py:el2n --prune high --p 0.4
    python train.py --score examples/strategies/el2n.py:MeanEL2N --prune high --p 0.4

The function scores the clean images once. The class takes the mean over the training so far, of
the images that were trained on.
"""
import torch
import torch.nn.functional as F


def length(logits, labels):
    return (logits.softmax(1) - F.one_hot(labels, logits.shape[1])).norm(dim=1)


def el2n(model, images, labels, ids):
    return length(model(images), labels)


class MeanEL2N:
    def __init__(self, n):
        self.total, self.times = torch.zeros(n), torch.zeros(n)

    def see(self, ids, labels, logits, losses, epoch):
        self.total[ids] += length(logits, labels)
        self.times[ids] += 1

    def scores(self):
        return self.total / self.times.clamp(min=1)
