"""Drop the labels that cleanlab calls wrong (confident learning, Northcutt et al. 2021).

    pip install '.[noise]'
    python train.py --labels noisy.npy --prune examples/strategies/cleanlab_issues.py:issues \
        --score-model first

It decides by the network's probabilities, and how many it drops does not depend on --p. cleanlab
asks for probabilities of images that were not trained on. Here the network has been trained on
them, and for a few epochs only.
"""
import torch
from cleanlab.filter import find_label_issues

from advprune import ops


def issues(scores, labels, p, seed, epoch, *, model, images):
    parts = [model(ops.pixels(batch)).softmax(1) for batch in images.split(500)]
    named = find_label_issues(labels.cpu().numpy(), torch.cat(parts).cpu().numpy(), n_jobs=1)
    return torch.from_numpy(~named).nonzero()[:, 0]
