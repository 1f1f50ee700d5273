"""Adversarial training on less data: one run of the paper's Algorithm 1.

    python train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    torchrun --nproc-per-node 8 -- train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    python train.py --dataset cifar10 --prune puma --p 0.3 --margin-model runs/NAME

trains with RS+FGSM, scores every training example after epoch 3, drops the 40 % of highest loss
and goes on with the rest; the last line does as PUMA: drops the 30 % of largest margin under
that run's network, and gives the rest budgets of their own. Recipes are those of
fast_adversarial, and flags override them. Writes a new directory (runs/... or --out; runs.py
lists its files) and prints a row an epoch, then one line of JSON. `--resume runs/NAME` goes on
with an interrupted run, to the same weights.
"""
import contextlib
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import attacks
import data
import log
import models
import ops
import prune
import runs
import settings


def lr_at(progress, lr, peak, schedule="cyclic"):
    """0 at the start, lr at `peak`, 0 at the end, in lines or down a cosine; progress in [0, 1].

    A function of the fractional epoch, so that the shorter epochs after pruning complete it too.
    """
    if schedule == "cosine" and progress > peak:
        return lr * (1 + math.cos(math.pi * (progress - peak) / (1 - peak))) / 2
    return float(np.interp(progress, [0, peak, 1], [0, lr, 0]))


class Training:
    """A run in progress: the network, its optimiser, the kept ids, and the log so far."""

    def __init__(self, args, dataset, device):
        self.args, self.dataset, self.device = args, dataset, device
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        self.autocast = torch.autocast(device.type, torch.bfloat16, args.precision == "bf16")
        self.layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model = models.build(**args.network).to(device, memory_format=self.layout)
        # Attacks and scoring call net; the update calls ddp, which averages the gradients.
        self.net = torch.compile(self.model) if args.compile else self.model
        ddp = torch.nn.parallel.DistributedDataParallel
        self.ddp = ddp(self.net) if runs.world() > 1 else self.net
        weights = self.model.parameters()
        self.opt = (torch.optim.Adam(weights, args.lr) if args.optimizer == "adam" else
                    torch.optim.SGD(weights, args.lr, momentum=0.9, weight_decay=5e-4,
                                    nesterov=args.nesterov))
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema),
                                     use_buffers=True) if args.ema else None
        self.margin_model = self.result
        self.saved = None  # (scores [N], their kind) where they come from a file
        self.eps = None  # of every example [N], once adapted
        self.kept = torch.arange(len(dataset.labels), device=device)
        self.running = torch.zeros(len(dataset.labels), device=device)  # last epoch's losses
        self.rows, self.train_seconds, self.prune_seconds = [], 0.0, 0.0

    @property
    def result(self):
        """The network that this run gives out: the average, where there is one."""
        return self.average.module if self.average else self.model

    def budget(self, ids):
        """(eps, alpha) of these examples: floats, or [B] where each has its own."""
        if self.eps is None:
            return self.args.epsilon, self.args.alpha
        eps = self.eps[ids]
        return eps, eps * (self.args.alpha / self.args.epsilon)  # a step of as many budgets

    def adversarial(self, x, y, ids, epoch):
        """The batch to train on: x [B, C, H, W] perturbed, with the model in train mode."""
        a, (eps, alpha) = self.args, self.budget(ids)
        if a.attack == "none":
            return x
        if a.loss == "trades":  # in eval mode, as its authors attack
            with attacks.frozen(self.model):
                return attacks.pgd_kl(self.net, x, ids, eps=eps, alpha=alpha, steps=a.pgd_steps,
                                      seed=a.seed, epoch=epoch)
        with attacks.frozen(self.model, training=True):
            if a.attack == "pgd":
                return attacks.pgd(self.net, x, y, ids, eps=eps, alpha=alpha,
                                   steps=a.pgd_steps, seed=a.seed, epoch=epoch)
            noise = a.seed, epoch, a.clip_start, 2.0 if a.attack == "n-fgsm" else 1.0
            start = ops.rs_start(x, ids, eps, *noise)  # Algorithm 1, line 26
            grad = attacks.input_grad(self.net, start, y)
            return ops.fgsm_step(x, grad, ids, eps, alpha, *noise,
                                 clip_ball=a.attack != "n-fgsm")  # lines 27, 28

    def losses(self, x, y, ids, epoch):
        """The loss [B] to descend, and the logits [B, K] of the adversarial examples."""
        a, adv = self.args, self.adversarial(x, y, ids, epoch)
        if a.loss == "trades":  # Zhang et al. 2019, equation 5
            clean, logits = self.ddp(x), self.ddp(adv)
            gap = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(clean, 1), log_target=True,
                           reduction="none").sum(1)
            return a.beta * gap + F.cross_entropy(clean, y, reduction="none",
                                                  label_smoothing=a.label_smoothing), logits
        logits = self.ddp(adv)
        return F.cross_entropy(logits, y, reduction="none",
                               label_smoothing=a.label_smoothing), logits

    def batches(self, epoch):
        """The ids of each batch of the epoch, in the order of their seed."""
        a, dataset, kept = self.args, self.dataset, self.kept
        if not torch.is_tensor(dataset.images):
            kept = kept.cpu()  # the host reads the files, and should not wait for the GPU
        if not a.extra_data:
            return data.order(kept, a.seed, epoch).split(a.batch_size)
        images, extra = dataset.epoch_size(len(kept)), kept >= dataset.original
        sizes = [min(a.batch_size, images - i) for i in range(0, images, a.batch_size)]
        return data.mixed_batches(kept[~extra], kept[extra], a.extra_fraction, sizes, a.seed,
                                  epoch)

    def epoch(self, epoch, bar):
        """One pass over the kept ids (lines 24-30); appends a row to the log."""
        a, start = self.args, time.perf_counter()
        self.model.train()
        self.running.zero_()
        sums = torch.zeros(2, device=self.device)  # loss and correct, on adversarial examples
        batches = self.batches(epoch)
        images = sum(map(len, batches))
        for step, batch in enumerate(batches):
            lr = lr_at((epoch + (step + 1) / len(batches)) / a.epochs, a.lr, a.peak, a.schedule)
            for group in self.opt.param_groups:
                group["lr"] = lr
            ids = batch[runs.rank()::runs.world()]
            x = self.dataset.batch(ids, a.seed, epoch, a.pad, a.flip,
                                   channels_last=self.layout == torch.channels_last)
            ids = ids.to(self.device, non_blocking=True)
            y = self.dataset.labels[ids]
            with self.autocast:
                losses, logits = self.losses(x, y, ids, epoch)
            self.opt.zero_grad()
            (losses.sum() * runs.world() / len(batch)).backward()  # line 29, on x + delta
            self.opt.step()
            if self.average:
                self.average.update_parameters(self.model)
            self.running[ids] = losses.detach().float()
            sums += torch.stack([losses.detach().sum(), (logits.argmax(1) == y).sum()])
            bar.update(len(batch))
        loss, accuracy = (runs.total(sums) / images).tolist()
        seconds = time.perf_counter() - start
        self.train_seconds += seconds
        if not np.isfinite(loss):
            raise runs.UserError(f"training diverged in epoch {epoch + 1}; try a smaller --lr")
        self.rows.append({"epoch": epoch + 1, "lr": lr, "examples": images, "loss": loss,
                          "accuracy": accuracy, "seconds": seconds,
                          "images_per_second": images / seconds})

    def prune(self, epoch):
        """Score, select and adapt the budgets, once (lines 3-23): (kind, scores [N])."""
        a, start = self.args, time.perf_counter()
        kind = "margin-l2" if a.margin_norm == "l2" else a.score
        if self.saved:
            scores, kind = self.saved
        elif a.prune == "random" and not a.adapt_eps:
            kind, scores = "random", torch.zeros_like(self.running)
        elif a.score == "running-loss":
            scores = runs.total(self.running.clone())
        else:
            model, precision = self.average or self.net, self.autocast
            how = dict(eps=a.epsilon, alpha=a.score_alpha, seed=a.seed, epoch=epoch,
                       clip_start=a.clip_start)
            if a.score == "margin":  # in float32, and uncompiled: its batches shrink as they cross
                model, precision = self.margin_model, contextlib.nullcontext()
                how = dict(norm=a.margin_norm, steps=a.margin_steps, classes=a.margin_classes)
            with precision, tqdm(total=len(self.running), unit="img", desc="scoring", leave=False,
                                 disable=None if runs.rank() == 0 else True) as bar:
                scores = prune.score(model, self.dataset, a.score, **how, bar=bar)
        balance = self.dataset.labels if a.class_balanced else None
        self.kept = prune.select(scores, a.prune, a.p, a.seed, balance)
        if a.adapt_eps:
            self.eps = prune.adapt(scores, self.kept, a.epsilon, a.adapt_fraction, a.eps_floor)
        self.prune_seconds = time.perf_counter() - start
        return kind, scores

    def adaptation(self):
        """The mean budget of the kept, and the share of them below the full one; {} before."""
        if self.eps is None:
            return {}
        eps = self.eps[self.kept]
        return {"mean_eps": eps.mean().item(),
                "adapted": (eps < self.args.epsilon).double().mean().item()}

    def state(self):
        return {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "eps": self.eps,
                "average": self.average.state_dict() if self.average else None,
                "kept": self.kept, "running": self.running, "rows": self.rows,
                "seconds": (self.train_seconds, self.prune_seconds)}

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.kept, self.running, self.rows = state["kept"], state["running"], state["rows"]
        self.train_seconds, self.prune_seconds = state["seconds"]
        self.eps = state.get("eps")
        if self.average:
            self.average.load_state_dict(state["average"])


@runs.script
def main(argv=None):
    args = settings.parse(argv, __doc__)
    device = runs.device(args.device)
    runs.join_processes(device)
    dataset, first = settings.prepare(args, device), runs.rank() == 0
    training = Training(args, dataset, device)
    if args.resume:
        log.restore(args.resume, training)
    if args.epoch is not None and len(training.rows) <= args.epoch:  # it is yet to prune
        training.saved = settings.saved_scores(args, dataset)
        training.margin_model = settings.margin_model(args, device) or training.result
    folder = Path(args.resume) if args.resume else log.create(args, training) if first else None

    n = len(dataset.labels)
    before = args.epochs if args.epoch is None else args.epoch
    images = (before * dataset.epoch_size(n)
              + (args.epochs - before) * dataset.epoch_size(n - round(args.p * n)))
    done = sum(row["examples"] for row in training.rows)
    with tqdm(total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True,
              disable=None if first else True) as bar:
        written = log.Log(folder, args.tensorboard) if first else None
        for epoch in range(len(training.rows), args.epochs):
            if epoch == args.epoch:
                kind, scores = training.prune(epoch)
                if first:
                    written.pruned(args, training, kind, scores)
            training.epoch(epoch, bar)
            if first:
                written.epoch(training)

    right = models.predict(training.result, dataset.test_images) == dataset.test_labels
    record = {
        "run": str(folder), "dataset": args.dataset, "prune": args.prune, "p": args.p,
        "epoch": args.epoch, "epochs": args.epochs, "seed": args.seed, "n_train": n,
        "n_kept": len(training.kept), "clean_accuracy": right.double().mean().item(),
        "train_seconds": training.train_seconds, "prune_seconds": training.prune_seconds,
        "images_per_second": images / training.train_seconds}
    record |= training.adaptation()
    if first:
        written.finish(training.result, record)
    return record


if __name__ == "__main__":
    main()
