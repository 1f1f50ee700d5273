"""Adversarial training on less data: one run of Algorithm 1 of Kaufmann et al. 2022.

    python train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    torchrun --nproc-per-node 8 -- train.py --dataset cifar10 --prune high --p 0.4 --epoch 3
    python train.py --dataset cifar10 --prune puma --p 0.3 --score-model runs/NAME
    python train.py --dataset cifar10 --labels FILE --prune high --p 0.4 --score-model first
    python train.py --resume runs/NAME

The first line trains with RS+FGSM, scores every training example after epoch 3, drops the 40 %
with the highest loss, and trains the other epochs on the rest. The third line does what PUMA does:
it drops the 30 % with the largest margin under that run's network, and gives each of the rest its
own budget. The fourth line is for labels of which many are wrong: it trains the same network for
five epochs without an attack, drops the 40 % with the highest loss of the images themselves, and
then trains afresh on the rest. Each data set has a recipe (advprune/config.py); flags change it.

A run writes a directory (a new runs/..., or --out; advprune/run.py lists its files). With --out,
the same command again continues what was cut off, and on a CPU ends with the same weights;
torchrun's --max-restarts needs nothing else. The last line does that for a run that named itself.
"""
import dataclasses
import math
import sys
import time
from functools import partial
from pathlib import Path

import advprune.start  # noqa: F401  first, because others may not be installed

import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from advprune import (
    attacks,
    config,
    console,
    data,
    distributed,
    image_folder,
    minutes,
    models,
    ops,
    own_code,
    precision,
    pruning,
    run,
    weights,
)
from advprune.errors import Stopped, UserError
from advprune.guard import Guard


def lr_at(progress, lr, peak, schedule="cyclic"):
    """The learning rate: up in a straight line from 0 to lr at `peak`, then down to 0.

    progress in [0, 1] is the fraction of the schedule that is done (Training.progress).
    """
    rest = min(1, (1 - progress) / (1 - peak))  # of the way down
    down = (1 - math.cos(math.pi * rest)) / 2 if schedule == "cosine" else rest
    return lr * min(progress / peak, down)


def optimizer(settings, weights):
    """The optimiser that the settings name, over these parameters."""
    a, weights = settings, list(weights)
    fused = not any(weight.is_complex() for weight in weights)
    if a.optimizer == "sgd":
        return torch.optim.SGD(weights, a.lr, momentum=a.momentum, nesterov=a.nesterov,
                               weight_decay=a.weight_decay, fused=fused)
    adam = torch.optim.Adam if a.optimizer == "adam" else torch.optim.AdamW
    return adam(weights, a.lr, weight_decay=a.weight_decay, fused=fused)


class Training:
    """A run in progress: the network, its optimiser, the kept ids, and the log so far."""

    def __init__(self, settings, dataset, device, network, codes=None, score_model=None,
                 scores=None, fresh=True):
        """network: what models.build takes. codes: the source of the user's own network, score
        and rule, by flag. score_model: the network that gives the scores, if it is not this one.
        scores: what run.read_scores gives. fresh: whether it begins, so that it needs
        --pretrained.
        """
        codes = codes or {}
        a = self.settings = config.settled(settings, dataset.original)
        self.dataset, self.device, self.scores = dataset, device, scores
        data.seed_all(a.seed)
        torch.backends.cudnn.benchmark = True
        self.autocast = precision.autocast(a.precision, device)
        self.model = models.build(**network, code=codes.get("model"))
        if a.pretrained and fresh:
            from_file(self.model, a.model, a.pretrained, new_head=True)
        self.model.to(device)
        self.channels_last = models.channels_last(self.model)
        if not any(weight.requires_grad for weight in self.model.parameters()):
            raise UserError(f"{a.model} has no parameter to train: none requires a gradient")
        self.smallest = smallest_batch(a, dataset, self.model)
        # Attacks call model; the update calls ddp, which averages the gradients.
        self.ddp = DistributedDataParallel(
            self.model, find_unused_parameters=own_code.is_file(a.model)
        ) if distributed.world() > 1 else self.model
        self.opt = optimizer(a, self.model.parameters())
        whole = dataset.epoch_size(len(dataset.labels))
        self.updates = len(data.batch_sizes(whole, a.batch_size, self.smallest))  # on all data
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(a.ema),
                                     use_buffers=True) if a.ema else None
        self.score_model = score_model or self.result
        self.seen = torch.zeros(len(dataset.labels), dtype=torch.bool, device=device)
        self.keep_all()
        self.wrong_share = None  # of the labels, once --p auto has asked for it
        self.rule, self.scorer = (
            own_code.loaded(getattr(a, flag), codes[flag], flag) if flag in codes else name
            for flag, name in (("prune", config.strategy(a.prune)), ("score", a.score)))
        self.observer = self.begin_observer()
        self.rows, self.seconds = [], dict.fromkeys(
            ("first", "train", "prune", "guard", "draw"), 0.0)
        # The attack of the settings, until a rollback replaces it.
        self.attack = {"kind": a.attack, "alpha": a.alpha, "steps": a.pgd_steps}
        self.guard = Guard(a, dataset)

    @property
    def result(self):
        """The network that the run saves: the averaged one with --ema, else the trained one."""
        return self.average.module if self.average else self.model

    @property
    def p(self):
        """The fraction to drop; AUTO before the pruning has found it."""
        if self.settings.p != config.AUTO or self.wrong_share is None:
            return self.settings.p
        return pruning.automatic(self.wrong_share)[0]

    def begin_observer(self):
        """The score that sees the training, if the settings have one."""
        a, n = self.settings, len(self.dataset.labels)
        maker = pruning.OBSERVERS.get(self.scorer) if isinstance(self.scorer, str) else self.scorer
        if not isinstance(maker, type) or a.prune in ("none", "random") or a.scores:
            return None
        if not (hasattr(maker, "see") and hasattr(maker, "scores")):
            raise UserError(f"--score: {maker.__name__} must be a function, or a class with the "
                            "methods see and scores")
        config.check_observer(a)
        with self.device:
            return pruning.call(maker, n)

    def observe(self, batch, logits, losses, epoch):
        """Show the observer the whole batch, of which this process has its share."""
        def whole(share):
            full = share.new_zeros(len(batch), *share.shape[1:])
            full[distributed.rank()::distributed.world()] = share
            return distributed.total(full)

        ids = batch.to(self.device)
        pruning.call(self.observer.see, ids, self.dataset.labels[ids],
                     whole(logits.detach().float()), whole(losses.detach().float()), epoch)

    def budget(self, ids):
        """(eps, alpha) of these examples: floats, or [B] if each has its own."""
        if self.eps is None:
            return self.settings.epsilon, self.attack["alpha"]
        eps = self.eps[ids]  # the step shrinks with it
        return eps, eps * (self.attack["alpha"] / self.settings.epsilon)

    def adversarial(self, x, y, ids, epoch):
        """The examples [B, C, H, W] to train on: x perturbed, with the network in train mode."""
        a, (eps, alpha) = self.settings, self.budget(ids)
        how = dict(eps=eps, alpha=alpha, seed=a.seed, epoch=epoch)
        kind, steps = self.attack["kind"], self.attack["steps"]
        if kind == "none":
            return x
        if a.loss == "trades":  # in eval mode, as its authors attack
            with attacks.evaluating(self.model):
                return attacks.pgd_kl(self.model, x, ids, steps=steps, **how)
        with attacks.frozen(self.model):
            if kind == "pgd":
                return attacks.pgd(self.model, x, y, ids, steps=steps, **how)
            if kind == "n-fgsm":
                how |= dict(noise_scale=2.0, clip_ball=False)
            # start = x + U(-eps, eps); delta = clip(start - x + alpha sign(grad), -eps, eps);
            # x' = clip(x + delta, 0, 1)       (Algorithm 1, lines 26-28)
            return attacks.rs_fgsm(self.model, x, y, ids, clip_start=a.clip_start, **how)

    def losses(self, x, y, ids, epoch):
        """The loss [B] to descend, and the logits [B, K] of the adversarial examples."""
        a, adv = self.settings, self.adversarial(x, y, ids, epoch)
        if a.loss == "trades":  # Zhang et al. 2019, equation 5
            clean, logits = self.ddp(x), self.ddp(adv)
            gap = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(clean, 1), log_target=True,
                           reduction="none").sum(1)
            return a.beta * gap + F.cross_entropy(clean, y, reduction="none",
                                                  label_smoothing=a.label_smoothing), logits
        logits = self.ddp(adv)
        return F.cross_entropy(logits, y, reduction="none",
                               label_smoothing=a.label_smoothing), logits

    def progress(self, epoch, step, steps):
        """The fraction of the schedule that is done in this one of an epoch's `steps` updates.

        It counts epochs, however short they are. With cyclic-fixed it counts updates, of as many
        as all data would take, and begins at 0 as torch's CyclicLR does.
        """
        if self.settings.schedule == "cyclic-fixed":
            done = sum(row["updates"] for row in self.rows) + step
            return done / (self.settings.epochs * self.updates)
        return (epoch + (step + 1) / steps) / self.settings.epochs

    def epoch(self, epoch, bar):
        """One pass over the kept ids (lines 24-30); appends a row to the log."""
        a, start = self.settings, time.perf_counter()
        data.seed_all(data.mixed_seed(a.seed, epoch, distributed.rank()))  # of dropout, if any
        self.model.train()
        self.seen[self.kept] = True
        sums = torch.zeros(2, device=self.device)  # loss and correct, on adversarial examples
        batches = self.dataset.batches(self.kept, a.batch_size, a.seed, epoch, a.extra_fraction,
                                       self.smallest)
        images = sum(map(len, batches))
        for step, batch in enumerate(batches):
            progress = self.progress(epoch, step, len(batches))
            lr = lr_at(progress, a.lr, a.peak, a.schedule)
            for group in self.opt.param_groups:
                group["lr"] = lr
                if "momentum" in group:
                    group["momentum"] = a.momentum + (a.momentum_at_peak - a.momentum) * lr / a.lr
            ids = batch[distributed.rank()::distributed.world()]
            x = self.dataset.batch(ids, a.seed, epoch, a.pad, a.flip,
                                   channels_last=self.channels_last)
            ids = ids.to(self.device, non_blocking=True)
            y = self.dataset.labels[ids]
            with self.autocast:
                losses, logits = self.losses(x, y, ids, epoch)
            self.opt.zero_grad()
            size = a.batch_size if a.full_batches else len(batch)
            counted = losses if self.weights is None else losses * self.weights[ids]
            (counted.sum() * distributed.world() / size).backward()  # line 29, on x + delta
            self.opt.step()
            if self.average:
                self.average.update_parameters(self.model)
            if self.observer:
                self.observe(batch, logits, losses, epoch)
            sums += torch.stack([losses.detach().sum(), (attacks.predicted(logits) == y).sum()])
            bar.update(len(batch))
            if not bar.disable and step % 20 == 0:
                bar.set_postfix(epoch=epoch + 1, loss=f"{losses.mean().item():.3f}",
                                lr=f"{lr:.2g}", refresh=False)
        loss, accuracy = (distributed.total(sums) / images).tolist()
        seconds = time.perf_counter() - start
        self.seconds["train"] += seconds
        if not math.isfinite(loss):
            raise UserError(f"training diverged in epoch {epoch + 1}; try a smaller --lr")
        row = {"epoch": epoch + 1, "lr": lr, "examples": images, "loss": loss,
               "accuracy": accuracy, "seconds": seconds, "images_per_second": images / seconds,
               "updates": len(batches), "progress": progress, "robust": None, "clean": None}
        if epoch + 1 in self.guard.due:
            start = time.perf_counter()
            with self.autocast:
                row["robust"], row["clean"] = self.guard.measure(self.result)
            self.seconds["guard"] += time.perf_counter() - start
        self.rows.append(row)

    def prune(self, epoch):
        """Score, select and adapt the budgets (lines 3-23).

        Returns the scores [N], their kind, and what speaks against this pruning, in sentences.
        """
        a, start = self.settings, time.perf_counter()
        seed = a.seed if epoch == a.epoch else data.mixed_seed(a.seed, epoch)
        data.seed_all(seed)  # a user's score and rule may draw; the same in a resumed run
        scores, kind = self.scores or self.score(epoch)
        if self.p == config.AUTO:
            self.wrong_share = pruning.wrong_share(self.score_model, self.dataset.images,
                                                   self.dataset.labels)
            if distributed.rank() == 0:
                tqdm.write(pruning.automatic(self.wrong_share)[1])
        data.seed_all(seed)  # and in each process, whose shares of the scores differ
        self.kept, self.weights = pruning.keep(
            self.rule, scores, self.dataset.labels, self.p, seed=seed, epoch=epoch,
            class_balanced=a.class_balanced, model=self.score_model, images=self.dataset.images)
        if len(self.kept) < self.smallest:
            raise UserError(f"{own_code.short(a.prune)} keeps {len(self.kept)} examples; a batch "
                            f"needs {self.smallest}")
        if a.adapt_eps:
            self.eps = pruning.adapt(scores, self.kept, a.epsilon, a.adapt_fraction, a.eps_floor)
        doubts = [*self.doubt_network(), *self.doubt_classes()]
        self.seconds["prune"] += time.perf_counter() - start
        return scores, kind, doubts

    def doubt_network(self):
        """A sentence if the network that gave the scores is near chance."""
        a = self.settings
        if a.prune == "random" or a.scores:
            return
        better = {None: "a later --epoch", config.FIRST: "more --first-epochs"}
        with self.autocast:
            clean = self.guard.clean(self.score_model)
        if run.at_chance(clean, self.dataset.labels, len(self.dataset.classes), self.guard.size):
            yield (f"the network that gives the scores is near chance: its clean accuracy is "
                   f"{clean:.3f} on {self.guard.size} training examples; give "
                   + better.get(a.score_model, "another --score-model"))

    def doubt_classes(self):
        """A sentence if pruning leaves a class too few examples."""
        a, names = self.settings, self.dataset.classes
        if starved := pruning.starved(self.dataset.labels, self.kept):
            lost = image_folder.listed([f"{kept} of {n} ({names[i]})" for i, kept, n in starved])
            balance = not (a.class_balanced or own_code.is_file(a.prune))
            yield (f"{own_code.short(a.prune)} pruning keeps only {lost}, less than a quarter of "
                   f"their share; give {'--class-balanced or ' * balance}a later --epoch")

    def keep_all(self):
        """Train on all data, as if nothing had been pruned."""
        self.kept = torch.arange(len(self.seen), device=self.device)
        self.weights = None  # of every example [N] in the loss, if a rule gives them
        self.eps = None  # the budget of every example [N], once adapted

    def score(self, epoch):
        """(scores [N], their kind) of all examples, as the network is now (lines 4-7)."""
        a = self.settings
        if a.prune == "random":
            return torch.zeros(len(self.seen), device=self.device), "random"
        if self.observer:
            maker = type(self.observer)
            scores = pruning.numbers(maker, pruning.call(self.observer.scores), len(self.seen))
            scores = distributed.total(scores.to(self.device) * (distributed.rank() == 0))
            return pruning.finite(maker, scores), own_code.short(a.score)
        precision, how = self.scoring(epoch)
        with precision, tqdm(total=len(self.seen), unit="img", desc="scoring", leave=False,
                             disable=None if distributed.rank() == 0 else True) as bar:
            images = self.dataset.images
            if a.score_augmented:
                images = data.Augmented(self.dataset, a.seed, epoch, a.pad, a.flip)
            scores = pruning.score(self.score_model, images, self.dataset.labels, self.scorer,
                                   **how, bar=bar)
        return scores, pruning.kind_name(own_code.short(a.score), a.margin_norm)

    def scoring(self, epoch):
        """(the precision in which a network scores, pruning.score's arguments)."""
        a = self.settings
        if a.score == "margin":  # in float32
            return (precision.float32(self.device),
                    dict(norm=a.margin_norm, classes=a.margin_classes))
        return self.autocast, dict(eps=a.epsilon, alpha=a.score_alpha, seed=a.seed, epoch=epoch,
                                   clip_start=a.clip_start)

    def budget_statistics(self):
        """The mean budget of the kept, and the share below the full one; {} if not adapted."""
        if self.eps is None:
            return {}
        eps = self.eps[self.kept]
        return {"mean_eps": eps.mean().item(),
                "adapted": (eps < self.settings.epsilon).double().mean().item()}

    def state(self):
        return {"model": self.model.state_dict(), "opt": self.opt.state_dict(), "eps": self.eps,
                "average": self.average.state_dict() if self.average else None,
                "kept": self.kept, "weights": self.weights, "seen": self.seen,
                "wrong_share": self.wrong_share,
                "observer": vars(self.observer) if self.observer else None, "rows": self.rows,
                "seconds": self.seconds, "attack": self.attack, "guard": self.guard.state()}

    def restore(self, state):
        """Go back to a state that `state` gave."""
        self.model.load_state_dict(state["model"])
        self.opt.load_state_dict(state["opt"])
        self.kept, self.weights, self.seen = state["kept"], state["weights"], state["seen"]
        self.wrong_share = state["wrong_share"]
        if self.observer:
            vars(self.observer).update(state["observer"])
        self.rows = state["rows"]
        self.seconds, self.eps, self.attack = state["seconds"], state["eps"], state["attack"]
        self.guard.restore(state["guard"])
        if self.average:
            self.average.load_state_dict(state["average"])


def smallest_batch(settings, dataset, model):
    """How many images a batch must have: one in each process, or two for batch normalisation.

    Raises UserError if the batches of this run cannot have as many.
    """
    kinds = torch.nn.modules.batchnorm._BatchNorm
    norms = any(isinstance(layer, kinds) for layer in model.modules())
    smallest = (1 + norms) * distributed.world()
    left = dataset.pruned_size(settings, unknown=pruning.MOST_WRONG)
    if min(settings.batch_size, left) < smallest:
        few = min((settings.batch_size, "a batch"), (left, "an epoch"))
        who = (f"{settings.model} has batch normalisation, which needs" if norms
               else f"{distributed.world()} processes need")
        raise UserError(f"{who} {smallest} images at a time or more; {few[1]} has {few[0]}")
    return smallest


def from_file(model, name, path, new_head=False):
    """The model, called `name`, with the weights of a file; says what the file does not say."""
    weights.load(model, path, new_head)
    distributed.say(f"train.py: {path} is taken as {models.described(name, model)}")
    return model


def score_model(settings, network, code, device, trust_code):
    """The network of --score-model, from a run or a weights file; None without one."""
    path = settings.score_model
    if path in (None, config.FIRST):
        return None
    if not Path(path).is_dir():
        return from_file(models.build(**network, code=code), settings.model, path).to(device)
    theirs = run.read_config(path)["network"]
    if odd := [name for name in ("channels", "classes", "size") if theirs[name] != network[name]]:
        raise UserError(f"--score-model {path} was trained on other data: its {odd[0]} differ")
    run.doubt_scores(path, settings.p)
    return weights.of_run(path, trust_code).to(device)


def first_network(training, this, network, codes, about):
    """The network of --score-model first. It is trained as a run of its own, in the run's folder.

    A resumed run finds it there, or continues it.
    """
    a, code = config.first(this.settings), {k: v for k, v in codes.items() if k == "model"}
    # Of the processes that do not write only those of a named run know the folder.
    folder = this.folder / "first" if this.first or this.named else None
    with run.Run(a, folder) as inner:
        state = inner.state(training.device)
        first = Training(a, training.dataset, training.device, network, code,
                         fresh=not (state or inner.record))
        if inner.record:
            weights.load_run(first.result, inner.folder)
        else:
            distributed.say(f"train.py: first {a.epochs} epochs without an attack, for the scores")
            if state:
                first.restore(state)
            inner.begin(first, network, code, about)
            inner.record = inner.finish(first, train(first, inner))
    training.seconds["first"] = inner.record["train_seconds"]
    return first.result


def prepared(settings, device, data_dir="data", cache_dir=None, trust_code=False, folder=None,
             state=None, fit=None):
    """(the Training that these settings begin, or continue from a state; what models.build takes;
    the source of the user's own network, score and rule, by flag).

    folder: the run's, if it exists already and may have the only copy of that source. fit: the
    epochs of settings with --minutes, given what makes a Training (minutes.epochs).
    """
    precision.check(settings.precision, device)
    with distributed.first_process_first():  # process 0 downloads for all
        dataset = data.of_run(settings, data_dir, cache_dir, device)
    n = len(dataset.labels)
    if round(settings.fraction(0) * n) == n:
        raise UserError(f"--p {settings.p} leaves none of the {n} examples")
    if folder:
        of_run = run.read_config(folder)
        data.check(dataset, settings, of_run["data"], ["train", "test"], data_dir)
    network = of_run["network"] if folder else models.spec(settings, dataset)
    own = {"model": network, **(of_run["own"] if folder else {
        flag: {"name": getattr(settings, flag)} for flag in ("score", "prune")})}
    codes = {flag: code for flag, record in own.items()
             if (code := own_code.of_run(folder, record, trust_code, flag)) is not None}
    scorer = scores = None
    if not state or settings.prunes_from(len(state["rows"])):
        scorer = score_model(settings, network, codes.get("model"), device, trust_code)
        if settings.scores:
            scores = run.read_scores(settings.scores, dataset.labels,
                                     "margin" if settings.adapt_eps else None)

    def begun(settings, fresh=False):
        return Training(settings, dataset, device, network, codes, scorer, scores, fresh)

    if settings.minutes and not settings.epochs:
        settings = dataclasses.replace(settings, epochs=fit(begun, settings))
    training = begun(settings, fresh=not state)
    if state:
        training.restore(state)
    return training, network, codes


def absolute(path):
    """The path from any folder, so that evaluate.py and --resume find what is there."""
    return path and str(Path(path).resolve())


def main(argv=None):
    began = advprune.start.BEGAN if __name__ == "__main__" else time.monotonic()
    args, settings = config.parse(argv, __doc__)
    device = console.device(args.device)
    distributed.join(device)
    with run.Run(settings, args.resume or args.out) as this:
        if this.record:
            if this.first:
                print(f"train.py: {this.folder} is finished; evaluate it: python evaluate.py "
                      f"{this.folder}", file=sys.stderr)
            this.say(this.record)
            return this.record
        about = {"command": console.command("train.py", argv),
                 "data_dir": absolute(args.data_dir or this.config.get("data_dir", "data")),
                 "cache_dir": absolute(args.cache_dir or this.config.get("cache_dir"))}
        training, network, codes = prepared(
            config.moved(this.settings, args), device, about["data_dir"], about["cache_dir"],
            args.trust_code, this.folder if this.config else None, this.state(device),
            partial(minutes.epochs, folder=this.folder, began=began))
        this.begin(training, network, codes, about)
        a = this.settings  # with the number of epochs
        if a.score_model == config.FIRST and a.prunes_from(len(training.rows)):
            training.score_model = first_network(training, this, network, codes, about)
        return this.finish(training, train(training, this))


def train(training, this):
    """All epochs that are left (Algorithm 1); returns the record."""
    a, dataset, guard = training.settings, training.dataset, training.guard
    if training.device.type == "cuda" and "cuda" not in ops.KERNELS:
        distributed.say("train.py: the CUDA kernels are not built (docs/kernels.md); plain torch "
                        "does their work, and takes longer")
    this.head()
    if not training.rows:
        guard.keep(training)

    def planned():
        return dataset.examples_of(dataclasses.replace(a, p=training.p)) + guard.lost

    done = sum(row["examples"] for row in training.rows)
    with run.Bar(total=planned(), initial=done, unit="img", unit_scale=True, dynamic_ncols=True,
                 disable=None if this.first else True, said=a.minutes is not None) as bar:
        while not guard.stopped and (epoch := len(training.rows)) < a.epochs:
            if a.prunes(epoch):
                this.pruned(training, epoch, *training.prune(epoch))
            elif epoch == a.until_epoch:
                training.keep_all()
            training.epoch(epoch, bar)
            bar.say_left(training.rows[-1]["seconds"] / training.rows[-1]["examples"])
            collapsed = guard.watch(training)  # it may go back to the epoch before
            bar.total = planned()
            this.epoch(training, collapsed)
    if guard.stopped:
        raise Stopped(guard.stopped)

    right = models.right(training.result, dataset.test_images, dataset.test_labels)
    seconds, images = training.seconds, sum(row["examples"] for row in training.rows) + guard.lost
    first = config.first(a)
    first_examples = dataset.examples_of(first) if first else 0
    return {
        "dataset": a.dataset, "prune": a.prune, "p": training.p, "epoch": a.epoch,
        "epochs": a.epochs, "seed": a.seed, "n_train": len(dataset.labels),
        "n_kept": len(training.kept),
        "clean_accuracy": right.double().mean().item(), "train_seconds": seconds["train"],
        "prune_seconds": seconds["prune"], "images_per_second": images / seconds["train"],
        "examples": images + (round(first_examples * first.passes / a.passes) if first else 0),
        "first_examples": first_examples,
        "first_seconds": seconds["first"], "n_seen": int(training.seen.sum()),
        "wrong_share": training.wrong_share,  # of the labels, if --p auto asked for it
        "schedule": a.schedule, "progress": training.rows[-1]["progress"],
        "guard_seconds": seconds["guard"],
        "draw_seconds": seconds["draw"], "collapses": guard.collapses,
        "collapsed": (guard.collapsed or bool(guard.undefended(training.rows[-1]))
                      if guard.due else None),  # None: nothing was checked
        **training.budget_statistics(), "classes": dataset.classes,
        "weights": weights.fingerprint(training.result)}


if __name__ == "__main__":
    console.run(main)
