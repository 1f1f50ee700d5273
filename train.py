"""Adversarial training on less data: one run of the paper's Algorithm 1.

    python train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    torchrun --nproc-per-node 8 train.py --dataset cifar10 --prune high --p 0.4 --epoch 3

trains with RS+FGSM, scores every training example after epoch 3, drops the 40 % of highest loss
and goes on with the rest. Recipes are those of fast_adversarial, and flags override them. Writes
a new directory (runs/... or --out; runs.py lists its files) and prints a row an epoch, then one
line of JSON. `--resume runs/NAME` goes on with an interrupted run, to the same weights.
"""
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from tqdm import tqdm

import attacks
import data
import models
import ops
import prune
import runs
import settings


def lr_at(progress, lr, peak):
    """The cyclic schedule: 0 at the start, lr at `peak`, 0 at the end; progress in [0, 1].

    A function of the fractional epoch, so that the shorter epochs after pruning complete it too.
    """
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
                    torch.optim.SGD(weights, args.lr, momentum=0.9, weight_decay=5e-4))
        self.kept = torch.arange(len(dataset.labels), device=device)
        self.running = torch.zeros(len(dataset.labels), device=device)  # last epoch's losses
        self.rows, self.train_seconds, self.prune_seconds = [], 0.0, 0.0

    def adversarial(self, x, y, ids, epoch):
        """The batch to train on: x [B, C, H, W] perturbed, with the model in train mode."""
        a = self.args
        if a.attack == "none":
            return x
        with attacks.frozen(self.model, training=True):
            if a.attack == "pgd":
                return attacks.pgd(self.net, x, y, ids, eps=a.epsilon, alpha=a.alpha,
                                   steps=a.pgd_steps, seed=a.seed, epoch=epoch)
            noise = a.seed, epoch, a.clip_start, 2.0 if a.attack == "n-fgsm" else 1.0
            start = ops.rs_start(x, ids, a.epsilon, *noise)  # Algorithm 1, line 26
            grad = attacks.input_grad(self.net, start, y)
            return ops.fgsm_step(x, grad, ids, a.epsilon, a.alpha, *noise,
                                 clip_ball=a.attack != "n-fgsm")  # lines 27, 28

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
            lr = lr_at((epoch + (step + 1) / len(batches)) / a.epochs, a.lr, a.peak)
            for group in self.opt.param_groups:
                group["lr"] = lr
            ids = batch[runs.rank()::runs.world()]
            x = self.dataset.batch(ids, a.seed, epoch, a.pad, a.flip,
                                   channels_last=self.layout == torch.channels_last)
            ids = ids.to(self.device, non_blocking=True)
            y = self.dataset.labels[ids]
            with self.autocast:
                logits = self.ddp(self.adversarial(x, y, ids, epoch))
                losses = F.cross_entropy(logits, y, reduction="none")
            self.opt.zero_grad()
            (losses.sum() * runs.world() / len(batch)).backward()  # line 29, on x + delta
            self.opt.step()
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

    def prune(self, epoch, saved):
        """Score and select, once (lines 3-23). Returns the scores [N], zeros for random."""
        a, start = self.args, time.perf_counter()
        if saved is not None:
            scores = saved
        elif a.prune == "random":
            scores = torch.zeros_like(self.running)
        elif a.score == "running-loss":
            scores = runs.total(self.running.clone())
        else:
            with self.autocast:
                scores = prune.score(self.net, self.dataset, a.score, eps=a.epsilon,
                                     alpha=a.score_alpha, seed=a.seed,
                                     epoch=epoch, clip_start=a.clip_start)
        balance = self.dataset.labels if a.class_balanced else None
        self.kept = prune.select(scores, a.prune, a.p, a.seed, balance)
        self.prune_seconds = time.perf_counter() - start
        return scores

    def state(self):
        return {"model": self.model.state_dict(), "opt": self.opt.state_dict(),
                "kept": self.kept, "running": self.running, "rows": self.rows,
                "seconds": (self.train_seconds, self.prune_seconds)}

    def restore(self, state):
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.kept, self.running, self.rows = state["kept"], state["running"], state["rows"]
        self.train_seconds, self.prune_seconds = state["seconds"]


def open_run(args, training):
    """The run's directory: a new one with its config.json, or --resume's, its state restored."""
    if not args.resume:
        pruned = f"-{args.prune}-p{args.p:g}-e{args.epoch}" if args.prune != "none" else ""
        if runs.rank() > 0:
            return None
        folder = runs.create(args.out, f"{args.dataset}-{args.attack}{pruned}-s{args.seed}")
        used = {k: v for k, v in vars(args).items() if k not in ("command", "resume")}
        runs.write_json(folder / "config.json", {
            "command": args.command, "args": used, "kernels": ops.KERNELS,
            **runs.environment(training.device)})
        return folder
    folder = Path(args.resume)
    if (folder / "train.json").exists():
        raise runs.UserError(f"{folder} is finished; evaluate it: python evaluate.py {folder}")
    if not (folder / "state.pt").exists():
        raise runs.UserError(f"{folder} ended within its first epoch; start it afresh")
    state = torch.load(folder / "state.pt", map_location=training.device, weights_only=True)
    if len(state["running"]) != len(training.dataset.labels):
        raise runs.UserError(f"{folder} was trained on {len(state['running'])} examples, but its "
                             f"files now have {len(training.dataset.labels)}")
    training.restore(state)
    return folder


@runs.script
def main(argv=None):
    args = settings.parse(argv, __doc__)
    device = runs.device(args.device)
    runs.join_processes(device)
    dataset, saved = settings.prepare(args, device)
    training = Training(args, dataset, device)
    folder, first = open_run(args, training), runs.rank() == 0

    n = len(dataset.labels)
    before = args.epochs if args.epoch is None else args.epoch
    images = (before * dataset.epoch_size(n)
              + (args.epochs - before) * dataset.epoch_size(n - round(args.p * n)))
    done = sum(row["examples"] for row in training.rows)
    with tqdm(total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True,
              disable=None if first else True) as bar:
        log = Log(folder, args.tensorboard) if first else None
        for epoch in range(len(training.rows), args.epochs):
            if epoch == args.epoch and args.prune != "none":
                scores = training.prune(epoch, saved)
                if first:
                    log.pruned(args, training, scores)
            training.epoch(epoch, bar)
            if first:
                log.epoch(training)

    right = models.predict(training.model, dataset.test_images) == dataset.test_labels
    record = {
        "run": str(folder), "dataset": args.dataset, "prune": args.prune, "p": args.p,
        "epoch": args.epoch, "epochs": args.epochs, "seed": args.seed, "n_train": n,
        "n_kept": len(training.kept), "clean_accuracy": right.double().mean().item(),
        "train_seconds": training.train_seconds, "prune_seconds": training.prune_seconds,
        "images_per_second": images / training.train_seconds}
    if first:
        log.finish(training.model, record)
    return record


class Log:
    """What process 0 prints and writes into the run's directory."""

    def __init__(self, folder, tensorboard):
        self.folder, self.events = folder, None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(folder)
        tqdm.write("epoch        lr  examples    loss  accuracy  seconds  images/s")

    def pruned(self, args, training, scores):
        dataset, kept = training.dataset, training.kept
        prune.save(self.folder / "scores.npz", scores, dataset.labels, kept)
        prune.draw(self.folder / "pruned.png", dataset, scores, kept,
                   f"{args.dataset}: {args.prune}, p = {args.p:g}, epoch {args.epoch}")
        tqdm.write(f"{args.prune} pruning kept {len(kept):,} of {len(scores):,} "
                   f"({training.prune_seconds:.1f} s)")

    def epoch(self, training):
        row = training.rows[-1]
        tqdm.write("{epoch:5d}  {lr:8.2g}  {examples:8,d}  {loss:6.3f}  {accuracy:8.4f}  "
                   "{seconds:7.1f}  {images_per_second:8,.0f}".format(**row))
        runs.write_csv(self.folder / "log.csv", training.rows)
        runs.write_saved(self.folder / "state.pt", torch.save, training.state())
        if self.events:
            for name in ("lr", "examples", "loss", "accuracy", "images_per_second"):
                self.events.add_scalar(name, row[name], row["epoch"])
            self.events.flush()

    def finish(self, model, record):
        weights = {name: v.contiguous().cpu() for name, v in model.state_dict().items()}
        runs.write(self.folder / "model.safetensors", safetensors.torch.save(weights))
        runs.write_json(self.folder / "train.json", record)
        print("clean accuracy {clean_accuracy:.4f}; trained in {train_seconds:.1f} s, pruned in "
              "{prune_seconds:.1f} s: {run}".format(**record))


if __name__ == "__main__":
    main()
