"""Adversarial training on less data: one run of Algorithm 1 of Kaufmann et al. 2022.

    python train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    torchrun --nproc-per-node 8 -- train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    python train.py --dataset cifar10 --prune puma --p 0.3 --margin-model runs/NAME
    python train.py --resume runs/NAME

The first line trains with RS+FGSM, scores every training example after epoch 3, drops the 40 %
with the highest loss, and trains on with the rest. The third line does what PUMA does: it drops
the 30 % with the largest margin under that run's network, and gives each of the rest its own
budget. The last line continues an interrupted run, and ends with the same weights. Each data set
has a recipe (advprune/recipes.py); flags change it.

A run writes a new directory (runs/... or --out; advprune/runs.py lists its files).
"""
if __name__ == "__main__":  # before the imports that take long
    from advprune import signals

    signals.die_of_interrupts()

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from advprune import attacks, cli, data, inputs, models, processes, pruning, runs, saved, settings
from advprune.guard import Guard
from advprune.log import Log
from advprune.precision import Autocast


def lr_at(progress, lr, peak, schedule="cyclic"):
    """The learning rate: up in a straight line from 0 to lr at `peak`, then down to 0.

    progress in [0, 1] is the fraction of all epochs that is done, however short they are.
    """
    rest = min(1, (1 - progress) / (1 - peak))  # of the way down
    down = (1 - math.cos(math.pi * rest)) / 2 if schedule == "cosine" else rest
    return lr * min(progress / peak, down)


def optimizer(args, weights):
    """The optimiser that the settings name, over these parameters."""
    if args.optimizer == "sgd":
        return torch.optim.SGD(weights, args.lr, momentum=args.momentum, nesterov=args.nesterov,
                               weight_decay=args.weight_decay, fused=True)
    adam = torch.optim.Adam if args.optimizer == "adam" else torch.optim.AdamW
    return adam(weights, args.lr, weight_decay=args.weight_decay, fused=True)


class Training:
    """A run in progress: the network, its optimiser, the kept ids, and the log so far."""

    def __init__(self, args, dataset, device, code=None, margin_model=None, scores=None):
        """code: the source of a FILE.py:NAME. scores: what pruning.load gives."""
        self.args, self.dataset, self.device, self.saved = args, dataset, device, scores
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high" if args.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        self.autocast = Autocast(device, args.precision)
        self.model = models.build(**args.network, code=code)
        if args.pretrained and not args.resume:
            models.load_weights(self.model, args.pretrained, new_head=True)
        self.model.to(device)
        self.channels_last = models.channels_last(self.model)
        self.smallest = inputs.smallest_batch(args, dataset, self.model)
        # Attacks call net; the update calls ddp, which averages the gradients.
        share = len(range(processes.rank(), args.batch_size, processes.world()))
        self.net = models.Compiled(self.model, share) if args.compile else self.model
        self.ddp = DistributedDataParallel(self.net) if processes.world() > 1 else self.net
        self.opt = optimizer(args, self.model.parameters())
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(args.ema),
                                     use_buffers=True) if args.ema else None
        self.margin_model = margin_model or self.result
        self.eps = None  # the budget of every example [N], once adapted
        self.kept = torch.arange(len(dataset.labels), device=device)
        self.running = torch.zeros(len(dataset.labels), device=device)  # last epoch's losses
        self.rows, self.seconds = [], dict.fromkeys(("train", "prune", "guard", "draw"), 0.0)
        # The attack of the settings, until a rollback replaces it.
        self.attack = {"kind": args.attack, "alpha": args.alpha, "steps": args.pgd_steps}
        self.guard = Guard(args, dataset)

    @property
    def result(self):
        """The network that the run saves: the averaged one with --ema, else the trained one."""
        return self.average.module if self.average else self.model

    def budget(self, ids):
        """(eps, alpha) of these examples: floats, or [B] where each has its own."""
        if self.eps is None:
            return self.args.epsilon, self.attack["alpha"]
        eps = self.eps[ids]
        return eps, eps * (self.attack["alpha"] / self.args.epsilon)  # the step shrinks with eps

    def adversarial(self, x, y, ids, epoch):
        """The examples [B, C, H, W] to train on: x perturbed, with the network in train mode."""
        a, (eps, alpha) = self.args, self.budget(ids)
        how = dict(eps=eps, alpha=alpha, seed=a.seed, epoch=epoch)
        kind, steps = self.attack["kind"], self.attack["steps"]
        if kind == "none":
            return x
        if a.loss == "trades":  # in eval mode, as its authors attack
            with attacks.evaluating(self.model):
                return attacks.pgd_kl(self.net, x, ids, steps=steps, **how)
        with attacks.frozen(self.model):
            if kind == "pgd":
                return attacks.pgd(self.net, x, y, ids, steps=steps, **how)
            if kind == "n-fgsm":
                how |= dict(noise_scale=2.0, clip_ball=False)
            # start = x + U(-eps, eps); delta = clip(start - x + alpha sign(grad), -eps, eps);
            # x' = clip(x + delta, 0, 1)       (Algorithm 1, lines 26-28)
            return attacks.rs_fgsm(self.net, x, y, ids, clip_start=a.clip_start, **how)

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

    def epoch(self, epoch, bar):
        """One pass over the kept ids (lines 24-30); appends a row to the log."""
        a, start = self.args, time.perf_counter()
        torch.manual_seed(data.mixed_seed(a.seed, epoch, processes.rank()))  # of dropout, if any
        self.model.train()
        self.running.zero_()
        sums = torch.zeros(2, device=self.device)  # loss and correct, on adversarial examples
        batches = self.dataset.batches(self.kept, a.batch_size, a.seed, epoch, a.extra_fraction,
                                       self.smallest)
        images = sum(map(len, batches))
        for step, batch in enumerate(batches):
            lr = lr_at((epoch + (step + 1) / len(batches)) / a.epochs, a.lr, a.peak, a.schedule)
            for group in self.opt.param_groups:
                group["lr"] = lr
            ids = batch[processes.rank()::processes.world()]
            x = self.dataset.batch(ids, a.seed, epoch, a.pad, a.flip,
                                   channels_last=self.channels_last)
            ids = ids.to(self.device, non_blocking=True)
            y = self.dataset.labels[ids]
            with self.autocast:
                losses, logits = self.losses(x, y, ids, epoch)
            self.opt.zero_grad()
            (losses.sum() * processes.world() / len(batch)).backward()  # line 29, on x + delta
            self.opt.step()
            if self.average:
                self.average.update_parameters(self.model)
            self.running[ids] = losses.detach().float()
            sums += torch.stack([losses.detach().sum(), (logits.argmax(1) == y).sum()])
            bar.update(len(batch))
            if not bar.disable and step % 20 == 0:
                bar.set_postfix(epoch=epoch + 1, loss=f"{losses.mean().item():.3f}",
                                lr=f"{lr:.2g}", refresh=False)
        loss, accuracy = (processes.total(sums) / images).tolist()
        seconds = time.perf_counter() - start
        self.seconds["train"] += seconds
        if not np.isfinite(loss):
            raise cli.UserError(f"training diverged in epoch {epoch + 1}; try a smaller --lr")
        row = {"epoch": epoch + 1, "lr": lr, "examples": images, "loss": loss,
               "accuracy": accuracy, "seconds": seconds, "images_per_second": images / seconds}
        start = time.perf_counter()
        with self.autocast:
            row["robust"], row["clean"] = self.guard.measure(self.result)
        self.seconds["guard"] += time.perf_counter() - start
        self.rows.append(row)

    def prune(self, epoch):
        """Score, select and adapt the budgets, once (lines 3-23): (kind, scores [N])."""
        a, start = self.args, time.perf_counter()
        kind = pruning.kind_name(a.score, a.margin_norm)
        if self.saved:
            scores, kind = self.saved
        elif a.prune == "random" and not a.adapt_eps:
            kind, scores = "random", torch.zeros_like(self.running)
        elif a.score == "running-loss":
            scores = processes.total(self.running.clone())
        else:
            model, precision = self.result, self.autocast
            how = dict(eps=a.epsilon, alpha=a.score_alpha, seed=a.seed, epoch=epoch,
                       clip_start=a.clip_start)
            if a.score == "margin":  # in float32; not compiled: DeepFool's batches shrink
                model, precision = self.margin_model, Autocast(self.device, "fp32")
                how = dict(norm=a.margin_norm, steps=a.margin_steps, classes=a.margin_classes)
            with precision, tqdm(total=len(self.running), unit="img", desc="scoring", leave=False,
                                 disable=None if processes.rank() == 0 else True) as bar:
                scores = pruning.score(model, self.dataset.images, self.dataset.labels, a.score,
                                       **how, bar=bar)
        balance = self.dataset.labels if a.class_balanced else None
        self.kept = pruning.select(scores, settings.strategy(a.prune), a.p, a.seed, balance)
        if a.adapt_eps:
            self.eps = pruning.adapt(scores, self.kept, a.epsilon, a.adapt_fraction, a.eps_floor)
        self.seconds["prune"] = time.perf_counter() - start
        return kind, scores

    def budget_statistics(self):
        """The mean budget of the kept, and the share below the full one; {} if not adapted."""
        if self.eps is None:
            return {}
        eps = self.eps[self.kept]
        return {"mean_eps": eps.mean().item(),
                "adapted": (eps < self.args.epsilon).double().mean().item()}

    def state(self):
        return {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "eps": self.eps,
                "average": self.average.state_dict() if self.average else None,
                "kept": self.kept, "running": self.running, "rows": self.rows,
                "seconds": self.seconds, "attack": self.attack, "guard": self.guard.state()}

    def restore(self, state):
        """Go back to a state that `state` gave."""
        if len(state["running"]) != len(self.running):
            raise cli.UserError(f"{self.args.resume} was trained on {len(state['running'])} "
                                f"examples, but its files now have {len(self.running)}")
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.kept, self.running, self.rows = state["kept"], state["running"], state["rows"]
        seconds = state["seconds"]  # a pair in older versions
        self.seconds |= (seconds if isinstance(seconds, dict)
                         else dict(zip(("train", "prune"), seconds, strict=True)))
        self.eps, self.attack = state.get("eps"), state.get("attack", self.attack)
        self.guard.restore(state.get("guard"), self.rows)
        if self.average:
            self.average.load_state_dict(state["average"])


def begin(args, device):
    """(the Training that these settings begin, or continue; the source of its own network)."""
    dataset = inputs.dataset(args, device)
    state = runs.checkpoint(args.resume, device) if args.resume else {"rows": []}
    code = saved.code_of(args.resume, args.network, args.trust_code)
    margin_model = scores = None
    if args.epoch is not None and len(state["rows"]) <= args.epoch:  # it has not pruned yet
        margin_model = inputs.margin_model(args, device, code)
        scores = inputs.scores(args, dataset.labels)
    training = Training(args, dataset, device, code, margin_model, scores)
    if args.resume:
        training.restore(state)
    return training, code


@cli.script
def main(argv=None):
    args = settings.parse(argv, __doc__)
    device = cli.device(args.device)
    processes.join(device)
    args, record = inputs.claim(args)
    if record:
        return record
    training, code = begin(args, device)
    dataset, first = training.dataset, processes.rank() == 0
    written = Log(args, training, code) if first else None
    training.guard.keep(training)

    n = len(dataset.labels)
    images = dataset.examples_of(args.epochs, args.epoch, round(args.p * n))
    done = sum(row["examples"] for row in training.rows)
    with tqdm(total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True,
              disable=None if first else True) as bar:
        while (epoch := len(training.rows)) < args.epochs:
            if epoch == args.epoch:
                kind, scores = training.prune(epoch)
                if first:
                    written.pruned(training, kind, scores)
            training.epoch(epoch, bar)
            collapsed = training.guard.watch(training)  # it may go back to the epoch before
            bar.total = images + training.guard.lost
            if first:
                written.epoch(training, collapsed)
            if collapsed and args.on_collapse == "stop":
                raise cli.Stopped(collapsed)

    right = models.predict(training.result, dataset.test_images) == dataset.test_labels
    seconds = training.seconds
    record = {
        "run": str(written.folder) if first else None, "dataset": args.dataset,
        "prune": args.prune, "p": args.p, "epoch": args.epoch, "epochs": args.epochs,
        "seed": args.seed, "n_train": n, "n_kept": len(training.kept),
        "clean_accuracy": right.double().mean().item(), "train_seconds": seconds["train"],
        "prune_seconds": seconds["prune"], "images_per_second": bar.total / seconds["train"],
        "examples": bar.total, "guard_seconds": seconds["guard"], "draw_seconds": seconds["draw"],
        "collapses": training.guard.collapses, "collapsed": training.guard.collapsed,
        **training.budget_statistics(), "classes": dataset.classes}
    if first:
        written.finish(training, record)
    return record


if __name__ == "__main__":
    main()
