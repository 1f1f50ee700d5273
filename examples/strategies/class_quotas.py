"""Class quotas (DRoP, Vysogorets et al. 2024): a class keeps in proportion to how hard it is.

    python train.py --score examples/strategies/class_quotas.py:wrong \
        --prune examples/strategies/class_quotas.py:quotas --p 0.4

Hard is a class of which few examples are right under attack. Which of a class stay is random.
"""
import torch

from advprune import attacks


def wrong(model, images, labels, ids, *, eps, alpha, seed, epoch):
    """1 for each image that the network classifies wrong under RS+FGSM, else 0."""
    adv = attacks.rs_fgsm(model, images, labels, ids, eps=eps, alpha=alpha, seed=seed, epoch=epoch)
    return attacks.predicted(model(adv)) != labels


def quotas(scores, labels, p, seed, epoch):
    """The ids that stay: of each class in proportion to its mean score, 1 - robust recall."""
    members = [(labels == c).nonzero()[:, 0] for c in labels.unique()]
    sizes = torch.tensor([len(m) for m in members], dtype=torch.float64)
    hard = torch.tensor([scores[m].mean() for m in members], dtype=torch.float64) + 1e-6
    left, quota = float(len(scores) - round(p * len(scores))), torch.zeros_like(sizes)
    while left > 0.5:  # what a class cannot take goes to the others
        open_ = quota < sizes
        quota = (quota + left * hard * open_ / (hard * open_).sum()).minimum(sizes)
        left = len(scores) - round(p * len(scores)) - float(quota.sum())
    generator = torch.Generator().manual_seed(seed)
    ends = quota.cumsum(0).round().long()  # so that the total is exact
    counts = torch.diff(ends, prepend=ends[:1] * 0).tolist()
    return torch.cat([m[torch.randperm(len(m), generator=generator)[:count]]
                      for m, count in zip(members, counts, strict=True)])
