"""InfoBatch (Qin et al. 2024): each epoch leaves out a random share of the easy examples.

    python train.py --score running-loss --prune examples/strategies/infobatch.py:infobatch \
        --p 0.5 --epoch 1 --every 1 --until-epoch 26 --epochs 30

Easy are those whose last loss is below the mean. The easy ones that stay weigh 1 / (1 - p), so
that the expected gradient is that of all data. The last eighth of the training is on all data.
"""
import torch


def infobatch(scores, labels, p, seed, epoch):
    """(ids, weights): all hard examples, and of the easy ones a share of 1 - p."""
    easy = scores < scores.mean()
    order = easy.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    left = order[torch.randperm(len(order), generator=generator)[round(p * len(order)):]]
    ids = torch.cat([(~easy).nonzero()[:, 0], left])
    return ids, torch.where(easy[ids], 1 / (1 - p), 1.0)
