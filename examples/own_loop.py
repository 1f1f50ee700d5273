"""Prune in your own training loop: train for 3 epochs, keep 60 % of the examples, train on."""
import torch
from sklearn.datasets import load_digits
from torch import nn

from advprune import attacks, pruning

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float() / 16  # [N, 64] in [0, 1]; any shape [N, ...] that your model takes
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer, kept = torch.optim.Adam(model.parameters(), 3e-3), torch.arange(len(labels))
for epoch in range(10):
    if epoch == 3:
        kept = pruning.select(pruning.score(model, images, labels, eps=0.1), "low+high", p=0.4)
    for ids in kept[torch.randperm(len(kept))].split(64):
        x = attacks.rs_fgsm(model, images[ids], labels[ids], ids, eps=0.1, alpha=0.12, epoch=epoch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels[ids]).backward()
        optimizer.step()
print(f"{len(kept)} kept; accuracy {(model(images).argmax(1) == labels).float().mean():.1%}")
