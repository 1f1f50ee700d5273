"""The settings of a run: one dataclass, the recipe of each data set, and train.py's flags.

RECIPES has every default of train.py, evaluate.py and prune.py in one table. Flags change its
values. `settings` checks them and gives the Settings, which config.json records. Nothing is loaded
here: neither data nor weights.
"""
import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advprune import console, models, own_code, pruning
from advprune.errors import UserError


@dataclass(frozen=True)
class Settings:
    """All that decides the weights of a run. Where its data lie and how it is run is not here."""

    dataset: str
    limit: int | None  # train on the first so many examples
    labels: str | None  # a file of training labels, in place of the data set's own
    image_size: int | None  # side of a folder's images
    skip_bad: bool
    extra_data: tuple[str, ...]  # npz files of generated images
    extra_fraction: float | None  # their share of a batch
    pad: int  # the random crop moves by so many pixels
    flip: bool

    recipe: str
    attack: str
    epsilon: float  # budgets and steps are in [0, 1] pixels
    alpha: float
    pgd_steps: int
    clip_start: bool  # whether the random start stays in the image box
    on_collapse: str

    prune: str
    p: float | str  # the fraction to drop, or AUTO
    epoch: int | None  # full epochs before pruning
    every: int | None  # prune again, from all data, after so many epochs
    until_epoch: int | None  # from here on, train on all data again
    score: str
    score_alpha: float  # the step of the RS+FGSM examples that are scored
    score_augmented: bool  # whether examples are scored as they are trained on: cropped, flipped
    scores: str | None  # a file of scores
    class_balanced: bool
    score_model: str | None  # the network that is asked for the scores: a run, a file, or FIRST
    first_epochs: int | None  # of FIRST
    margin_norm: str
    margin_classes: int | None
    adapt_fraction: float
    eps_floor: float

    minutes: float | None  # in which the run is to end; they choose the epochs (minutes.py)
    epochs: int  # None, as batch_size, until it follows from the minutes or the images (settled)
    batch_size: int
    optimizer: str
    lr: float
    peak: float  # the fraction of the run at which the learning rate is highest
    momentum: float
    momentum_at_peak: float  # it moves against the learning rate, between these two
    nesterov: bool
    weight_decay: float
    schedule: str
    full_batches: bool  # whether a smaller last batch has the weight of its size alone
    loss: str
    beta: float | None  # of TRADES
    label_smoothing: float
    ema: float | None
    precision: str

    model: str
    width: int | None
    mean: tuple[float, ...] | None  # of the network's normalisation; None: its own
    std: tuple[float, ...] | None
    pretrained: str | None
    seed: int

    @property
    def adapt_eps(self) -> bool:
        """Whether pruning also gives each example a budget of its own."""
        return self.prune == "puma"

    def fraction(self, unknown: float) -> float:
        """The fraction to drop; `unknown` if only the pruning itself finds it."""
        return unknown if self.p == AUTO else float(self.p)

    def pruned_in(self, epoch: int) -> bool:
        """Whether this epoch is trained on what pruning kept."""
        return self.epoch is not None and self.epoch <= epoch < (self.until_epoch or self.epochs)

    @property
    def pruned_epochs(self) -> int:
        """How many epochs are trained on what pruning kept."""
        return sum(map(self.pruned_in, range(self.epochs)))

    def prunes(self, epoch: int) -> bool:
        """Whether it prunes before this epoch."""
        if self.epoch is None or not self.pruned_in(epoch):
            return False
        return epoch == self.epoch or bool(self.every and (epoch - self.epoch) % self.every == 0)

    def prunes_from(self, epoch: int) -> bool:
        """Whether it prunes before this epoch or a later one."""
        return any(map(self.prunes, range(epoch, self.epochs)))

    @property
    def passes(self) -> int:
        """How many passes through the network the training makes of one example.

        Forward is one, backward to the image is one, and backward to image and weights is two.
        """
        steps = {"none": 0, "pgd": self.pgd_steps}.get(self.attack, 1)
        return 2 * steps + (7 if self.loss == "trades" else 3)


# --- recipes

Recipe = dict[str, Any]

# Those of MNIST and CIFAR-10 are fast_adversarial's (Wong et al. 2020). alphas: the step of each
# attack, in units of epsilon, so that it follows --epsilon. eval_alpha: the step of PGD-50-10,
# also in units of epsilon.
MNIST: Recipe = dict(
    model="mnist-net", epsilon=0.3, alphas={"rs-fgsm": 1.25, "n-fgsm": 1.0, "pgd": 1 / 30},
    clip_start=False, pgd_steps=40, eval_alpha=1 / 30, epochs=10, batch_size=100,
    optimizer="adam", lr=5e-3, peak=0.4, momentum=0.9, weight_decay=0.0, pad=0, flip=False)
CIFAR10: Recipe = dict(
    model="preactresnet18", epsilon=8 / 255, alphas={"rs-fgsm": 1.25, "n-fgsm": 1.0, "pgd": 1 / 4},
    clip_start=True, pgd_steps=10, eval_alpha=1 / 4, epochs=15, batch_size=128,
    optimizer="sgd", lr=0.2, peak=0.5, momentum=0.9, weight_decay=5e-4, pad=4, flip=True)
RECIPES: dict[str, Recipe] = {
    # At 0.13 a network trained without attacks loses nearly all its robust accuracy on the digits.
    "digits": {**MNIST, "epsilon": 0.13, "epochs": 30, "batch_size": 32, "peak": 0.1, "pad": 1},
    "mnist": MNIST,
    "fashion-mnist": {**MNIST, "epsilon": 0.1},
    "cifar10": CIFAR10,
    "cifar100": CIFAR10,
    # As Andriushchenko & Flammarion 2020 train on SVHN: training often diverges at a higher rate,
    # and a flipped digit is none.
    "svhn": {**CIFAR10, "lr": 0.05, "flip": False},
    # CIFAR-10's for twice as many epochs: sets of 64x64 images such as Tiny ImageNet have a tenth
    # of the images of each class and many more classes; small sets have more epochs and smaller
    # batches (settled). ImageNet's usual epsilon. The crop moves by an eighth of the side, as
    # CIFAR-10's does.
    "folder": {**CIFAR10, "epsilon": 4 / 255, "image_size": 64,
               **dict.fromkeys(("epochs", "batch_size", "pad"))},
    "synthetic": {**MNIST, "epsilon": 0.1, "epochs": 5, "batch_size": 32, "peak": 0.2},
}

# How the values that follow from the images are written: None in the recipe.
FOLLOWS = {"epochs": "30 or more", "batch_size": "32 to 128", "pad": "side / 8"}
UPDATES = 1000  # at least, of a folder's network

# Any trained network has more clean accuracy than this, a robust one too. evaluate.py doubts less.
LEAST_CLEAN = {"digits": 0.8, "mnist": 0.9, "fashion-mnist": 0.7, "cifar10": 0.6, "cifar100": 0.3,
               "svhn": 0.7}

# --recipe robust: what to train with so that training does not collapse (docs/training.md has the
# measurements). Two steps of PGD cost more than one of RS+FGSM, so MNIST gets fewer epochs. On
# colour images N-FGSM costs what RS+FGSM costs.
PGD_2: Recipe = dict(attack="pgd", pgd_steps=2, alphas={"pgd": 2 / 3})
N_FGSM: Recipe = dict(attack="n-fgsm")
ROBUST: dict[str, Recipe] = {
    "digits": PGD_2, "mnist": {**PGD_2, "epochs": 8}, "fashion-mnist": PGD_2,
    "cifar10": N_FGSM, "cifar100": N_FGSM, "svhn": N_FGSM, "folder": N_FGSM, "synthetic": PGD_2}


# --recipe wang2023: what PUMA was put on top of (Wang et al. 2023; TRADES: Zhang et al. 2019).
WANG_2023: Recipe = dict(
    attack="pgd", loss="trades", beta=5.0, label_smoothing=0.1, ema=0.995, schedule="cosine",
    peak=0.025, optimizer="sgd", lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4,
    model="wideresnet28-10-silu", epochs=400, batch_size=512)
PLAIN: Recipe = dict(
    attack="rs-fgsm", loss="cross-entropy", label_smoothing=0.0, ema=None, schedule="cyclic",
    nesterov=False, momentum_at_peak=0.9, full_batches=False, score="loss", score_augmented=False)

# --recipe authors: what Kaufmann et al.'s own code does (github.com/max-kaufmann/FastAdv; see
# docs/differences.md). torch's CyclicLR moves the momentum too, from 0.9 to 0.8 and back.
CLEAN_LOSS: Recipe = dict(score="clean-loss", score_augmented=True, full_batches=True)
CYCLE: Recipe = {**CLEAN_LOSS, "schedule": "cyclic-fixed", "momentum_at_peak": 0.8}
AUTHORS: dict[str, Recipe] = {
    **dict.fromkeys(RECIPES, CLEAN_LOSS),
    **dict.fromkeys(("cifar10", "cifar100", "svhn", "folder"), CYCLE),
    "fashion-mnist": {**CLEAN_LOSS, "model": "resnet18", "epsilon": 0.3}}
BETA, EXTRA_FRACTION = 5.0, 0.7  # TRADES' and Wang et al.'s
P, PRUNE_EPOCH = 0.4, 3
AUTO = "auto"  # --p: as many as look wrongly labelled (pruning.wrong_share)
FIRST, FIRST_EPOCHS = "first", 5  # --score-model first


def recipe(dataset: str, name: str = "paper") -> Recipe:
    """The values of a data set under --recipe paper, authors, robust or wang2023."""
    paper = {**PLAIN, **RECIPES[dataset]}
    changes = {"paper": {}, "authors": AUTHORS[dataset], "robust": ROBUST[dataset],
               "wang2023": WANG_2023}[name]
    return {**paper, **changes, "alphas": {**paper["alphas"], **changes.get("alphas", {})}}


def remedy(dataset: str, epsilon: float) -> Recipe:
    """The attack that a run continues with after a rollback (guard.py).

    If --recipe robust has PGD, it has one step more here: a network that was about to collapse
    overfits to two steps too.
    """
    robust = recipe(dataset, "robust")
    if robust["attack"] == "pgd":
        return {"kind": "pgd", "alpha": epsilon / 2, "steps": 3}
    return {"kind": robust["attack"], "alpha": robust["alphas"][robust["attack"]] * epsilon,
            "steps": robust["pgd_steps"]}


def shown(name: str) -> str:
    """One value for all data sets, or each value after its data sets' names, as --help says it."""
    values: dict[str, list[str]] = {}
    for dataset, recipe in RECIPES.items():
        if name in recipe:
            value = FOLLOWS[name] if recipe[name] is None else recipe[name]
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            values.setdefault(text, []).append(dataset)
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{', '.join(datasets)} {text}" for text, datasets in values.items())


# --- flags

STRATEGIES = (*pruning.STRATEGIES, "puma")
SCORES = (*pruning.SCORES, *pruning.OBSERVERS)
MARGIN = ("margin_norm", "margin_classes")
ADAPT = ("adapt_fraction", "eps_floor")
FILES = ("labels", "scores", "score_model", "pretrained")
# What --resume may go with: where data lie and how a run is run are no settings of it.
PLACES = ("resume", "data_dir", "cache_dir", "labels", "extra_data", "device", "trust_code")


def strategy(prune: str) -> str:
    """The strategy of pruning.select that --prune stands for: PUMA drops the highest margins."""
    return "high" if prune == "puma" else prune


def shown_p(p: float | str) -> str:
    """--p as the names of folders have it."""
    return AUTO if p == AUTO else f"{p:g}"


def fraction(text: str) -> float | str:
    """An argparse type: a fraction to drop, or AUTO."""
    if text == AUTO:
        return text
    try:
        return console.fraction(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or {AUTO}") from None


def model_name(text: str) -> str:
    """An argparse type: the name of a network (see models.check_name)."""
    try:
        return models.check_name(text)
    except console.UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def own_or(known: tuple[str, ...], flag: str) -> Callable[[str], str]:
    """An argparse type: one of these names, or FILE.py:NAME of a file that can be read."""

    def parse(text: str) -> str:
        if not own_code.is_file(text):
            if text not in known:
                raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}, and no "
                                                 "FILE.py:NAME")
            return text
        try:
            own_code.source(text, flag)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return own_code.resolve(text)

    return parse


score_name, rule_name = own_or(SCORES, "score"), own_or(STRATEGIES, "prune")


def parser(doc: str | None = None) -> console.Parser:
    """train.py's parser."""
    made = console.Parser(doc)
    for name, add in (("data", _data_flags), ("pruning", _pruning_flags),
                      ("attack", _attack_flags), ("training", _training_flags),
                      ("the run", _run_flags)):
        add(made.add_argument_group(name).add_argument)
    return made


def _data_flags(flag: Callable) -> None:
    flag("--dataset", choices=list(RECIPES), default="digits", help="default: digits (embedded)")
    flag("--data-dir", metavar="DIR", help="folder of the data sets; missing ones are downloaded "
         "into it (data; with --resume, as for the run)")
    flag("--cache-dir", metavar="DIR", help="where images decoded from a folder or a compressed "
         "npz are kept (beside them)")
    flag("--limit", type=console.positive_int, metavar="N",
         help="train on the first N examples, and on all of --extra-data")
    flag("--labels", metavar="FILE", help="training labels in place of the data set's own: a .npy "
         "of whole numbers, one for each training image; for --dataset folder a CSV of path,class "
         "(with --resume, as for the run)")
    flag("--image-size", type=console.positive_int, metavar="PIXELS",
         help=f"side of the images of --dataset folder ({shown('image_size')})")
    flag("--skip-bad", action="store_true", help="leave out images that cannot be used")
    flag("--extra-data", metavar="FILE", action="append",
         help="an npz of generated images to train on too; may be given several times (with "
         "--resume, as for the run)")
    flag("--extra-fraction", type=console.number(float, 0, 1, open_low=True),
         help=f"share of --extra-data in a batch ({EXTRA_FRACTION})")


def _pruning_flags(flag: Callable) -> None:
    flag("--prune", type=rule_name, metavar="RULE", help="what to drop: "
         f"{', '.join(STRATEGIES)} (high drops the highest scores; see prune.py), or a rule of "
         "your own as FILE.py:NAME (none)")
    flag("--p", type=fraction, help=f"fraction to drop, 0 <= p < 1 ({P}); or {AUTO}: as many as "
         "look wrongly labelled to the network of --score-model, at most half, none below 5 %%")
    flag("--epoch", type=console.number(int, 0), help="full epochs before pruning "
         f"({PRUNE_EPOCH}, or 0 with --scores or --score-model)")
    flag("--every", type=console.positive_int, metavar="N", help="prune again, from all data and "
         "with new scores, after each N epochs (once)")
    flag("--until-epoch", type=console.positive_int, metavar="E", help="after E epochs train on "
         "all data again (never)")
    flag("--score", type=score_name, help="the score to prune by: "
         f"{', '.join(SCORES)} (prune.py explains them), or your own as FILE.py:NAME (loss; for "
         f"puma, margin; with --score-model {FIRST} or --p {AUTO}, clean-loss)")
    flag("--score-augmented", action=argparse.BooleanOptionalAction, help="score examples as they "
         "are trained on, cropped and flipped (no; with --recipe authors, yes)")
    flag("--scores", metavar="FILE", help="prune by the scores in this file of prune.py")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--score-model", metavar="RUN-or-FILE", help="the network that gives the scores: a run; "
         f"a weights file that fits --model; or {FIRST}: the same network, trained for "
         "--first-epochs without an attack (the network in training)")
    flag("--first-epochs", type=console.positive_int, metavar="N",
         help=f"epochs of --score-model {FIRST} ({FIRST_EPOCHS})")
    flag("--margin-norm", choices=["linf", "l2"], help="norm of --score margin (linf)")
    flag("--margin-classes", type=console.number(int, 2), metavar="K",
         help="search boundaries to the K - 1 next best classes only (all)")
    flag("--adapt-fraction", type=console.number(float, 0, 1, open_low=True),
         help="for --prune puma: adapt only this fraction of the kept examples, those of "
         "lowest margin (1)")
    flag("--eps-floor", type=console.budget, help="for --prune puma: the smallest budget (0)")


def _attack_flags(flag: Callable) -> None:
    flag("--recipe", choices=["paper", "authors", "robust", "wang2023"], default="paper",
         help="paper: RS+FGSM, as published, which can collapse; authors: the same, as its "
         "authors' code has it; robust: PGD of 2 steps for grey images, N-FGSM for colour; "
         "wang2023: TRADES and a wide network, as PUMA is used (paper)")
    flag("--attack", choices=["none", "rs-fgsm", "n-fgsm", "pgd"], help="that of the --recipe")
    flag("--on-collapse", choices=["warn", "stop", "rollback", "off"], default="warn",
         help="what to do when robust accuracy on training examples breaks down: go on, end the "
         "run, or return to the last good check and go on with the attack of --recipe robust; off "
         "checks nothing (warn)")
    flag("--epsilon", type=console.budget, help="l-inf budget in [0, 1] pixels, such as 8/255 "
         f"({shown('epsilon')})")
    flag("--alpha", type=console.number(float, 0, 2), help="attack step in [0, 1] pixels (1.25 "
         "epsilon for rs-fgsm, epsilon for n-fgsm; for pgd epsilon/4 on colour images, else "
         "epsilon/30, with --recipe robust 2 epsilon/3)")
    flag("--pgd-steps", type=console.positive_int,
         help=f"steps of --attack pgd and --loss trades ({shown('pgd_steps')})")


def _training_flags(flag: Callable) -> None:
    flag("--epochs", type=console.positive_int,
         help=f"passes over the training set ({shown('epochs')})")
    flag("--minutes", type=console.number(float, 0, open_low=True), metavar="M",
         help="instead of --epochs: as many as end within M minutes on this machine, all included")
    flag("--batch-size", type=console.positive_int,
         help=f"images in an update, over all processes ({shown('batch_size')})")
    flag("--optimizer", choices=["sgd", "adam", "adamw"],
         help=f"the optimiser ({shown('optimizer')}); another one needs --lr")
    flag("--lr", type=console.number(float, 0, 1e6, open_low=True),
         help=f"peak learning rate ({shown('lr')})")
    flag("--schedule", choices=["cyclic", "cyclic-fixed", "cosine"], help="the learning rate: up "
         "and down in straight lines; the same in as many updates as all data would take, so that "
         "a pruned run stops on the way; up, then down as a cosine (that of the --recipe)")
    flag("--weight-decay", type=console.number(float, 0, 1e6),
         help=f"of the optimiser ({shown('weight_decay')})")
    flag("--loss", choices=["cross-entropy", "trades"],
         help="trades: cross-entropy of x + beta KL(x || x'), with x' by PGD on the KL "
         "(that of the --recipe)")
    flag("--beta", type=console.number(float, 0, 1e6), help=f"of --loss trades ({BETA:g})")
    flag("--label-smoothing", type=console.fraction, help="of the cross-entropy (0)")
    flag("--ema", type=console.fraction, metavar="DECAY",
         help="average the weights exponentially with this decay, such as 0.995; the average is "
         "the run's result")
    flag("--model", type=model_name, metavar="NAME", help=f"{', '.join(models.MODELS)}, one of "
         "torchvision, or your own as FILE.py:NAME (mnist-net for grey images, preactresnet18 "
         "for colour)")
    flag("--width", type=console.positive_int, help="channels of the first layer; for wide "
         "networks, the widening factor")
    normalisation_flags(flag)
    flag("--pretrained", metavar="FILE", help="start from these weights")
    flag("--precision", choices=["fp32", "tf32", "bf16"], default="fp32",
         help="bf16 is faster on GPUs, and on CPUs that have its instructions (fp32)")


def normalisation_flags(flag: Callable) -> None:
    """--mean and --std, of train.py and evaluate.py."""
    flag("--mean", type=console.per_channel(console.number(float, 0, 1)), metavar="A,B,C",
         help="the network first computes (x - mean) / std of images in [0, 1]; one value, or one "
         "for each channel; none: it does not (as built into the network)")
    flag("--std", type=console.per_channel(console.number(float, 0, open_low=True)),
         metavar="A,B,C", help="goes with --mean")


def normalisation(args: argparse.Namespace) -> dict[str, tuple[float, ...] | None]:
    """mean and std, as models.build takes them. Raises UserError if one of them is missing."""
    if args.mean is None and args.std is None:
        return {"mean": None, "std": None}
    if args.mean == () and args.std is None:  # none
        return {"mean": (0.0,), "std": (1.0,)}
    if not args.mean or not args.std:
        raise UserError("--mean and --std go together; give both, or --mean none alone")
    return {"mean": args.mean, "std": args.std}


def _run_flags(flag: Callable) -> None:
    flag("--seed", type=console.seed, default=0, help="of weights, order and noise (0)")
    flag("--out", metavar="DIR", help="the run's directory (a new runs/<what it is>); the same "
         "command again continues what was cut off")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    flag("--resume", metavar="DIR", help="continue this run with its own settings")
    flag("--trust-code", action="store_true",
         help="allow network code from a run's directory to be executed (--resume, "
         "--score-model)")


def parse(argv: list[str] | None, doc: str | None = None
          ) -> tuple[argparse.Namespace, Settings | None]:
    """(train.py's flags, the Settings that they give). With --resume the run has the settings."""
    made = parser(doc)
    args = made.parse_args(argv)
    if not args.resume:
        return args, settings(args)
    for name in vars(args).keys() - set(PLACES):
        if getattr(args, name) != made.get_default(name):
            raise UserError(f"--resume keeps the run's settings; leave out {console.flag(name)}")
    return args, None


def moved(settings: Settings, args: argparse.Namespace) -> Settings:
    """The settings of a run whose --labels and --extra-data lie where these flags say now."""
    labels = args.labels and str(Path(args.labels).resolve())
    paths = tuple(str(Path(path).resolve()) for path in args.extra_data or ())
    return replace(settings, labels=labels or settings.labels,
                   extra_data=paths or settings.extra_data)


def first(settings: Settings) -> Settings | None:
    """The settings of the run that --score-model first trains: all data, without an attack.

    None if there is no such run.
    """
    if not settings.first_epochs:
        return None
    return replace(settings, attack="none", loss="cross-entropy", beta=None, minutes=None,
                   epochs=settings.first_epochs, prune="none", p=0.0, epoch=None, every=None,
                   until_epoch=None, score="loss", score_model=None, first_epochs=None)


def settings(args: argparse.Namespace) -> Settings:
    """The settings that these flags give. Raises UserError if they do not fit together."""
    chosen = recipe(args.dataset, args.recipe)
    given = {name: value for name, value in vars(args).items()
             if name in Settings.__annotations__ and value is not None}
    for name in FILES:  # --resume finds them too, from any folder
        if name in given and (name, given[name]) != ("score_model", FIRST):
            given[name] = str(Path(given[name]).resolve())
    given["extra_data"] = tuple(str(Path(path).resolve()) for path in args.extra_data or ())
    given |= normalisation(args)
    _check_data(args)
    _check_training(args, chosen)
    _check_pruning(args)
    values = {**dict.fromkeys(Settings.__annotations__), **UNSET, **chosen, **given}
    values = {name: values[name] for name in Settings.__annotations__}
    _complete(values, args, chosen)
    made = Settings(**values)
    if made.epochs:
        _check_epochs(made)
    if made.adapt_eps and (made.attack == "none" or made.epsilon == 0):
        raise UserError("--prune puma needs an attack with a budget, not --attack none or "
                        "--epsilon 0")
    if made.score in pruning.OBSERVERS and not made.scores:
        check_observer(made)
    return made


def settled(settings: Settings, images: int) -> Settings:
    """The settings with the epochs and the batch size that follow from the number of images.

    An epoch has 16 updates or more from 512 images on, with batches of at most 128, and a run has
    UPDATES or more. Raises UserError if --epoch or --until-epoch is too late for it.
    """
    a = settings
    batch_size = a.batch_size or (128 if images >= 2048 else 64 if images >= 1024 else 32)
    epochs = a.epochs or max(30, math.ceil(UPDATES / math.ceil(images / batch_size)))
    made = replace(a, batch_size=batch_size, epochs=epochs)
    _check_epochs(made)
    return made


def _check_epochs(made):
    if made.epoch is not None and made.epoch >= made.epochs:
        raise UserError(f"--epoch {made.epoch} is too late: it must leave some of the "
                        f"{made.epochs} --epochs to train on what is kept")
    if made.until_epoch and not made.epoch < made.until_epoch < made.epochs:
        raise UserError(f"--until-epoch {made.until_epoch} must be after --epoch {made.epoch} and "
                        f"before the last of the {made.epochs} --epochs")


# The values of flags that are not given, if no recipe has one.
UNSET: Recipe = dict(prune="none", p=0.0, margin_norm="linf", adapt_fraction=1.0, eps_floor=0.0)


def _complete(values, args, chosen):
    """Fill in what follows from other settings."""
    if args.minutes:
        values["epochs"] = None
    if values["loss"] == "trades":
        values["attack"] = "pgd"
        values["beta"] = BETA if values["beta"] is None else values["beta"]
    else:
        values["beta"] = None
    epsilon = values["epsilon"]
    attack = values["attack"]
    if args.alpha is None:
        values["alpha"] = chosen["alphas"].get(attack, 1.25) * epsilon
    values["score_alpha"] = values["alpha"] if attack == "rs-fgsm" else 1.25 * epsilon
    if values["dataset"] == "folder":
        values["pad"] = values["image_size"] // 8
    if values["extra_data"]:
        values["extra_fraction"] = values["extra_fraction"] or EXTRA_FRACTION
    if values["prune"] == "none":
        return
    values["p"] = P if args.p is None else args.p
    if values["prune"] == "puma":
        values["score"] = "margin"
    elif args.score is None and (args.score_model == FIRST or args.p == AUTO):
        values["score"] = "clean-loss"
    if args.score_model == FIRST:
        values["first_epochs"] = args.first_epochs or FIRST_EPOCHS
    if args.epoch is None:
        elsewhere = args.scores or args.score_model  # the scores are of another network
        values["epoch"] = 0 if elsewhere else PRUNE_EPOCH


def _refuse(args, names, why):
    """Raise UserError if one of these flags is given."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) is not False:  # 0 is given
            raise UserError(f"{console.flag(name)} {why}")


def _check_data(args):
    if args.dataset != "folder":
        _refuse(args, ("image_size", "skip_bad"), "is for --dataset folder")
    if not args.extra_data:
        _refuse(args, ("extra_fraction",), "has no effect without --extra-data")


def _check_training(args, chosen):
    """TRADES has its own attack, PGD. A learning rate belongs to an optimiser."""
    if args.minutes:
        _refuse(args, ("epochs",), "has no effect with --minutes, which chooses it")
    attack = args.attack or chosen["attack"]
    if (args.loss or chosen["loss"]) != "trades":
        _refuse(args, ("beta",), "applies only with --loss trades")
        if attack != "pgd":
            _refuse(args, ("pgd_steps",), f"is for --attack pgd, not for {attack}")
        if attack == "none":
            _refuse(args, ("alpha",), "has no effect with --attack none")
    elif args.attack not in (None, "pgd"):
        raise UserError(f"--loss trades has its own attack; leave out --attack {args.attack}")
    if args.optimizer not in (None, chosen["optimizer"]) and args.lr is None:
        raise UserError(f"--optimizer {args.optimizer} needs --lr: the learning rate in "
                        f"{args.dataset}'s recipe is meant for {chosen['optimizer']}")
    if args.optimizer not in (None, "sgd") and chosen["nesterov"]:
        raise UserError(f"--recipe {args.recipe} is for SGD, not for {args.optimizer}")


def _check_pruning(args):
    if own_code.is_file(args.prune or ""):
        _refuse(args, ("class_balanced",), "is for the built-in rules; yours gets the labels")
    if args.scores:
        _refuse(args, ("every",), "needs new scores each time, and --scores has only one set")
        _refuse(args, ("score_model",), "gives scores, and so does --scores; leave one out")
        _refuse(args, ("score", "score_augmented"), "computes scores, and --scores has them; "
                "leave one out")
    if args.score_model != FIRST:
        _refuse(args, ("first_epochs",), f"applies only with --score-model {FIRST}")
    if args.prune in (None, "none"):
        _refuse(args, ("p", "class_balanced", "epoch", "every", "until_epoch"),
                "has no effect without --prune")
    if args.p == AUTO:
        check_auto(args)
        _refuse(args, ("scores",), "says nothing about labels, which --p auto asks a network for")
        if not args.score_model:
            raise UserError("--p auto needs --score-model, such as first: it asks a network that "
                            "is not in training")
    if args.prune in (None, "none", "random"):
        _refuse(args, ("score", "score_augmented", "scores", "score_model", *MARGIN),
                f"has no effect with --prune {args.prune or 'none'}; leave it out")
    if args.prune == "puma":
        if args.score not in (None, "margin"):
            raise UserError(f"--prune puma drops by margin, not by --score {args.score}")
        if args.margin_norm == "l2":
            raise UserError("--prune puma needs --margin-norm linf: the attack's budget is "
                            "l-infinity")
    else:
        _refuse(args, ADAPT, "applies only with --prune puma")
    if args.scores or not (args.score == "margin" or args.prune == "puma"):
        _refuse(args, MARGIN, "applies only with --score margin, and not with --scores")


def check_auto(args: argparse.Namespace) -> None:
    """Raise UserError unless --p auto makes sense with this --prune and this --score."""
    if args.prune != "high" and not own_code.is_file(args.prune):
        raise UserError("--p auto is for --prune high, which drops what looks wrong, not for "
                        f"--prune {args.prune}")
    if args.score not in (None, "clean-loss") and not own_code.is_file(args.score):
        raise UserError("--p auto is for --score clean-loss, by which labels look wrong, not for "
                        f"--score {args.score}")


def check_observer(made: Settings) -> None:
    """Raise UserError if a score that sees the training cannot be had with these settings."""
    name = f"--score {own_code.short(made.score)}"
    if made.score_model:
        raise UserError(f"{name} is of the network in training; leave out --score-model")
    if made.epoch == 0:
        raise UserError(f"{name} needs an epoch of training first: --epoch 1 or more")
    if made.extra_data:
        raise UserError("with --extra-data an epoch does not visit every example, so there is no "
                        f"{name}")
