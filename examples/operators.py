"""The operators alone: an RS+FGSM step, the loss of each example, and the ids that stay."""
import torch

from advprune import ops

images = torch.randint(256, (1000, 3, 32, 32), dtype=torch.uint8)
labels, ids = torch.randint(10, (1000,)), torch.arange(1000)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))

start = ops.rs_start(images, ids, eps=8 / 255, seed=0, epoch=0).requires_grad_()
loss = torch.nn.functional.cross_entropy(model(start), labels, reduction="sum")
(grad,) = torch.autograd.grad(loss, start)
adv = ops.fgsm_step(images, grad, ids, eps=8 / 255, alpha=10 / 255, seed=0, epoch=0)
with torch.no_grad():
    losses, correct = ops.cross_entropy_scores(model(adv), labels)
kept = ops.select_kept(losses, drop=400, how="high")
print(f"kernels: {ops.KERNELS}; {correct.sum()} of 1000 right under attack; mean loss "
      f"{losses.mean():.2f}, of the {len(kept)} kept {losses[kept].mean():.2f}")
