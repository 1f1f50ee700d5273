"""--recipe authors is the loop of Kaufmann et al.'s own code, written here plainly with torch."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from advprune import config, models, reference

FLAGS = ["--dataset", "cifar10", "--limit", "150", "--batch-size", "32", "--width", "2",
         "--epochs", "4", "--recipe", "authors", "--prune", "extremes", "--p", "0.4", "--epoch",
         "2", "--seed", "3", "--lr", "0.02"]  # at theirs, 0.2, so small a network is chaotic


def plain_loop(a, network, weights, dataset):
    """(kept ids, weights, learning rates): their algorithm, on our order of batches and noise."""
    model = models.build(**network)
    model.load_state_dict(weights)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    n, size, eps, alpha = 150, 32, 8 / 255, 10 / 255
    half = 4 * -(-n // size) / 2  # of all updates, before any is dropped
    cycle = torch.optim.lr_scheduler.CyclicLR(opt, 0.0, 0.02, half, half)
    kept, rates = torch.arange(n), []

    def augmented(ids, epoch):
        return dataset.batch(ids, 3, epoch, pad=4, flip=True)

    for epoch in range(4):
        if epoch == 2:
            model.eval()
            with torch.no_grad():
                losses = F.cross_entropy(model(augmented(kept, epoch)), dataset.labels[kept],
                                         reduction="none").numpy()
            model.train()
            order = np.argsort(np.abs(losses - losses.mean()))
            kept = kept[np.sort(order[:int(0.6 * n)])]
        for ids in dataset.batches(kept, size, 3, epoch, None, 2):
            x, y = augmented(ids, epoch), dataset.labels[ids]
            delta = eps * reference.uniform(ids, 3 * 32 * 32, 3, epoch).view(x.shape)
            delta = torch.clamp(delta, -x, 1 - x).requires_grad_()
            F.cross_entropy(model(x + delta), y).backward()
            delta = torch.clamp(delta.detach() + alpha * delta.grad.sign(), -eps, eps)
            delta = torch.clamp(delta, -x, 1 - x)
            opt.zero_grad()
            (F.cross_entropy(model(x + delta), y, reduction="none").sum() / size).backward()
            rates.append(opt.param_groups[0]["lr"])
            opt.step()
            cycle.step()
    return kept, model.state_dict(), rates


def test_the_recipe_is_their_loop(real_data):
    _, a = config.parse(FLAGS)
    training, network, _ = train.prepared(a, torch.device("cpu"),
                                          real_data("cifar-10-batches-py"))
    start = {name: value.clone() for name, value in training.model.state_dict().items()}
    for epoch in range(4):
        if epoch == 2:
            training.prune(epoch)
        training.epoch(epoch, train.tqdm(disable=True))
    kept, weights, rates = plain_loop(a, network, start, training.dataset)
    assert torch.equal(training.kept, kept)
    assert training.rows[-1]["lr"] == pytest.approx(rates[-1])
    assert rates[-1] > 0.005  # it stops on the way
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-4, atol=1e-6)
