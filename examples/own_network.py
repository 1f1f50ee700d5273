"""Score the training examples with your own network, and look at what would go."""
import torch
from sklearn.datasets import load_digits
from torch import nn

from advprune import models, pruning

images, labels = map(torch.tensor, load_digits(return_X_y=True))
images = images.float().view(-1, 1, 8, 8) / 16  # [N, C, H, W] in [0, 1]
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))  # yours
model = nn.Sequential(models.Normalize(mean=[0.31], std=[0.38]), network)
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
for _ in range(30):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
scores = pruning.score(model, images, labels, eps=0.1)  # the loss on RS+FGSM examples
dropped = torch.ones_like(scores).index_fill(0, pruning.select(scores, "high", p=0.2), 0).bool()
print("dropped of each digit:", labels[dropped].bincount(minlength=10).tolist())
print("ids of highest loss:", scores.topk(5).indices.tolist())
