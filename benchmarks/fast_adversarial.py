"""Training as fast_adversarial writes it, in our own words: what ours is compared with.

Images come one by one from a DataLoader of PIL images. The attack's backward pass computes the
gradients of the weights too. Each step waits for its loss. The layers are PyTorch's, in the
layout that PyTorch gives them. It runs in a process of its own, whose memory is as it comes.
"""
import copy
import time
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from advprune import layers
from benchmarks import workload
from benchmarks.timing import sync
from train import lr_at


class PerItem(Dataset):
    """Images [N, C, H, W] uint8 and labels, one by one, as torchvision's data sets give them."""

    def __init__(self, images, labels, transform):
        images = images[torch.arange(len(labels))].cpu()
        self.images = (images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1))
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i].numpy())), self.labels[i]


def loader(training):
    """The batches of an epoch."""
    from torchvision import transforms

    a, ours = training.settings, training.dataset
    augment = [transforms.RandomCrop(ours.images.shape[-1], padding=a.pad)] if a.pad else []
    augment += [transforms.RandomHorizontalFlip()] if a.flip else []
    items = PerItem(ours.images, ours.labels,
                    transforms.Compose([*augment, transforms.ToTensor()]))
    return DataLoader(items, batch_size=a.batch_size, shuffle=True, num_workers=0)


def noise(x, eps):
    """The random start of an attack, less x."""
    return torch.zeros_like(x).uniform_(-eps, eps)


def seconds(words, device):
    """The time of one more epoch of the loop for these flags of train.py, a tuple."""
    loop = begun(words, device)
    start = time.perf_counter()
    loop.epoch()
    sync(device)
    return time.perf_counter() - start


@cache
def begun(words, device):
    return Loop(workload.begun(words, device))


class Loop:
    """A network of its own, with its optimiser and loader."""

    def __init__(self, training):
        self.settings, self.device = training.settings, training.device
        self.autocast = training.autocast
        self.model = layers.plain(copy.deepcopy(training.model).train())
        self.opt = workload.remade(training.opt, self.model.parameters())
        self.loader = loader(training)

    def step(self, x, y, lr):
        """An update on RS+FGSM's examples; the loss and the logits of these."""
        a, (group,) = self.settings, self.opt.param_groups
        group["lr"] = lr
        delta = noise(x, a.epsilon)
        if a.clip_start:
            delta = (x + delta).clamp(0, 1) - x
        delta.requires_grad_()
        with self.autocast:
            loss = F.cross_entropy(self.model(x + delta), y)
        loss.backward()
        grad = delta.grad.detach()
        delta = torch.clamp(delta.detach() + a.alpha * torch.sign(grad), -a.epsilon, a.epsilon)
        delta = torch.max(torch.min(1 - x, delta), 0 - x)
        with self.autocast:
            logits = self.model(torch.clamp(x + delta, 0, 1))
            loss = F.cross_entropy(logits, y)
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss, logits

    def epoch(self):
        a = self.settings
        loss_sum, right, n = 0.0, 0, 0
        for i, (x, y) in enumerate(self.loader):
            x, y = x.to(self.device), y.to(self.device)
            lr = lr_at((i + 1) / len(self.loader) / a.epochs, a.lr, a.peak, a.schedule)
            loss, logits = self.step(x, y, lr)
            loss_sum += loss.item() * y.size(0)
            right += (logits.max(1)[1] == y).sum().item()
            n += y.size(0)
        return loss_sum / n, right / n
