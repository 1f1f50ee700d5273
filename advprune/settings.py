"""The settings of a run of train.py: its flags, the recipe that fills them, and their checks.

Nothing is loaded here: neither data nor weights.
"""
import argparse
from collections.abc import Callable
from pathlib import Path

from advprune import cli, custom, data, models, pruning, recipes, runs
from advprune.recipes import shown

STRATEGIES = (*pruning.STRATEGIES, "puma")
SCORES = (*pruning.SCORES, "running-loss")
MARGIN = ("margin_model", *recipes.MARGIN)


def strategy(prune: str) -> str:
    """The strategy of pruning.select that --prune stands for: PUMA drops the highest margins."""
    return "high" if prune == "puma" else prune


def model_name(text: str) -> str:
    """An argparse type: the name of a network (see models.check_name)."""
    try:
        return models.check_name(text)
    except cli.UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def flags(doc: str | None) -> cli.Parser:
    """train.py's parser."""
    parser = cli.Parser(doc)
    for name, add in (("data", _data_flags), ("pruning", _pruning_flags),
                      ("attack", _attack_flags), ("training", _training_flags),
                      ("the run", _run_flags)):
        add(parser.add_argument_group(name).add_argument)
    return parser


def _data_flags(flag: Callable) -> None:
    flag("--dataset", choices=data.NAMES, default="digits", help="default: digits (embedded)")
    flag("--data-dir", default="data", help="folder of the data sets; missing ones are "
         "downloaded into it (data)")
    flag("--cache-dir", metavar="DIR", help="where images decoded from a folder or a compressed "
         "npz are kept (beside them)")
    flag("--limit", type=cli.positive_int, metavar="N",
         help="train on the first N examples, and on all of --extra-data")
    flag("--image-size", type=cli.positive_int, metavar="PIXELS",
         help=f"side of the images of --dataset folder ({shown('image_size')})")
    flag("--skip-bad", action="store_true", help="leave out images that cannot be read")
    flag("--extra-data", metavar="FILE", action="append",
         help="an npz of generated images to train on too; may be given several times")
    flag("--extra-fraction", type=cli.number(float, 0, 1, open_low=True),
         help=f"share of --extra-data in a batch ({recipes.EXTRA_FRACTION})")


def _pruning_flags(flag: Callable) -> None:
    flag("--prune", choices=STRATEGIES, help="what to drop: high drops the highest "
         "scores; see prune.py (none)")
    flag("--p", type=cli.fraction, help=f"fraction to drop, 0 <= p < 1 ({recipes.P})")
    flag("--epoch", type=cli.number(int, 0), help="full epochs before pruning "
         f"({recipes.PRUNE_EPOCH}, or 0 with --scores or --margin-model)")
    flag("--score", choices=SCORES, help="the score to prune by; prune.py explains them "
         "(loss; for puma, margin)")
    flag("--scores", metavar="FILE", help="prune by the scores in this file of prune.py")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--margin-model", metavar="RUN-or-FILE", help="the network that measures the "
         "margins: a run, or a weights file that fits --model (the network in training)")
    flag("--margin-norm", choices=["linf", "l2"], help="norm of --score margin (linf)")
    flag("--margin-steps", type=cli.positive_int, help="DeepFool's largest number of steps (50)")
    flag("--margin-classes", type=cli.number(int, 2), metavar="K",
         help="search boundaries to the K - 1 next best classes only (all)")
    flag("--adapt-eps", action="store_true",
         help="after pruning, train with eps_i = clip(margin_i, floor, eps)")
    flag("--adapt-fraction", type=cli.number(float, 0, 1, open_low=True),
         help="adapt only this fraction of the kept examples, those of lowest margin (1)")
    flag("--eps-floor", type=cli.budget, help="the smallest budget that --adapt-eps gives (0)")


def _attack_flags(flag: Callable) -> None:
    flag("--recipe", choices=["paper", "robust"], default="paper", help="paper: RS+FGSM, as "
         "published, which can collapse; robust: PGD of 2 steps for grey images, N-FGSM for "
         "colour (paper)")
    flag("--attack", choices=["none", "rs-fgsm", "n-fgsm", "pgd"], help="that of the --recipe")
    flag("--on-collapse", choices=["warn", "stop", "rollback"], default="warn",
         help="what to do when robust accuracy on training examples breaks down: go on, end the "
         "run, or return to the epoch before and go on with the attack of --recipe robust (warn)")
    flag("--epsilon", type=cli.budget, help="l-inf budget in [0, 1] pixels, such as 8/255 "
         f"({shown('epsilon')})")
    flag("--alpha", type=cli.number(float, 0, 1e6),
         help="attack step in [0, 1] pixels (1.25 epsilon "
         "for rs-fgsm, epsilon for n-fgsm; for pgd epsilon/4 with cifar10 and folder, else "
         "epsilon/30)")
    flag("--pgd-steps", type=cli.positive_int,
         help=f"steps of --attack pgd and --loss trades ({shown('pgd_steps')})")


def _training_flags(flag: Callable) -> None:
    flag("--epochs", type=cli.positive_int,
         help=f"passes over the training set ({shown('epochs')})")
    flag("--batch-size", type=cli.positive_int,
         help=f"images in an update, over all processes ({shown('batch_size')})")
    flag("--optimizer", choices=["sgd", "adam", "adamw"],
         help=f"the optimiser ({shown('optimizer')}); another one needs --lr")
    flag("--lr", type=cli.number(float, 0, 1e6, open_low=True),
         help=f"peak learning rate ({shown('lr')})")
    flag("--momentum", type=cli.fraction, help=f"of SGD ({shown('momentum')})")
    flag("--nesterov", action="store_true", help="Nesterov's momentum, for SGD")
    flag("--weight-decay", type=cli.number(float, 0, 1e6),
         help=f"of the optimiser ({shown('weight_decay')})")
    flag("--schedule", choices=["cyclic", "cosine"], default="cyclic",
         help="of the learning rate: cyclic rises and falls in straight lines; cosine rises "
         "during the first 2.5 %% of the run, then falls along half a cosine (cyclic)")
    flag("--loss", choices=["cross-entropy", "trades"], default="cross-entropy",
         help="trades: cross-entropy of x + beta KL(x || x'), with x' by PGD on the KL")
    flag("--beta", type=cli.number(float, 0, 1e6), help=f"of --loss trades ({recipes.BETA:g})")
    flag("--label-smoothing", type=cli.fraction, default=0.0, help="of the cross-entropy (0)")
    flag("--ema", type=cli.fraction, metavar="DECAY",
         help="average the weights exponentially with this decay, such as 0.995; the average is "
         "the run's result")
    flag("--model", type=model_name, metavar="NAME", help="a network of advprune/models.py, one "
         "of torchvision, or your own as FILE.py:NAME (mnist-net for grey images, preactresnet18 "
         "for colour)")
    flag("--width", type=cli.positive_int, help="channels of the first layer; for wide networks, "
         "the widening factor")
    flag("--pretrained", metavar="FILE", help="start from these weights")
    flag("--precision", choices=["fp32", "tf32", "bf16"], default="fp32",
         help="bf16 is faster on GPUs, and on CPUs that have its instructions (fp32)")
    flag("--compile", action="store_true", help="torch.compile the network; for a GPU: no CPU "
         "was measured to gain")


def _run_flags(flag: Callable) -> None:
    flag("--seed", type=cli.seed, default=0, help="of weights, order and noise (0)")
    flag("--out", metavar="DIR", help="the run's new directory (runs/<what it is>)")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    flag("--tensorboard", action="store_true", help="also write TensorBoard events")
    flag("--resume", metavar="DIR", help="continue this interrupted run with its own settings")
    flag("--trust-code", action="store_true",
         help="allow network code from a run's directory to be executed (--resume, "
         "--margin-model)")


def parse(argv: list[str] | None, doc: str | None = __doc__) -> argparse.Namespace:
    """The settings of a run, its recipe filled in; or those of the run that --resume names."""
    parser = flags(doc)
    args = parser.parse_args(argv)
    if args.resume:
        return _resumed(parser, args)
    args.command = cli.command("train.py", argv)
    for name in ("scores", "margin_model", "pretrained", "cache_dir"):  # --resume finds them too
        if getattr(args, name):
            setattr(args, name, str(Path(getattr(args, name)).resolve()))
    recipe = recipes.of(args.dataset, args.recipe)
    _extra_data(parser, args)
    _loss_and_attack(parser, args, recipe)
    _optimizer(parser, args, recipe)
    if args.dataset != "folder" and (args.image_size or args.skip_bad):
        parser.error("--image-size and --skip-bad are for --dataset folder")
    _fill(args, recipe)
    if args.schedule == "cosine":
        args.peak = recipes.COSINE_PEAK
    if args.dataset == "folder":
        args.pad = args.image_size // 8
    if args.alpha is None:
        args.alpha = args.alphas.get(args.attack, 1.25) * args.epsilon
    args.score_alpha = args.alpha if args.attack == "rs-fgsm" else 1.25 * args.epsilon
    _pruning(parser, args)
    return args


def _resumed(parser, args):
    for name in vars(args).keys() - {"resume", "device", "trust_code"}:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--resume keeps the run's settings; leave out "
                         f"--{name.replace('_', '-')}")
    stored = runs.config(args.resume)["args"]
    given = {name: getattr(args, name) for name in ("resume", "device", "trust_code")}
    args = argparse.Namespace(**{**vars(args), **stored, **given})
    _fill(args, recipes.RECIPES[args.dataset])  # what an older version did not record
    return args


def _fill(args, values):
    for name, value in values.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


def _refuse(parser, args, names, why):
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) is not False:  # 0 is given
            parser.error(f"--{name.replace('_', '-')} {why}")


def _extra_data(parser, args):
    if not args.extra_data:
        _refuse(parser, args, ("extra_fraction",), "has no effect without --extra-data")
        return
    if args.score == "running-loss":
        parser.error("with --extra-data an epoch does not visit every example, so there is no "
                     "--score running-loss; use --score loss")
    args.extra_data = [str(Path(path).resolve()) for path in args.extra_data]
    args.extra_fraction = args.extra_fraction or recipes.EXTRA_FRACTION


def _loss_and_attack(parser, args, recipe):
    """TRADES has its own attack, PGD. Otherwise the recipe says which."""
    if args.loss == "trades":
        if args.attack not in (None, "pgd"):
            parser.error(f"--loss trades has its own attack; leave out --attack {args.attack}")
        args.attack, args.beta = "pgd", recipes.BETA if args.beta is None else args.beta
    else:
        _refuse(parser, args, ("beta",), "applies only with --loss trades")
        args.attack = args.attack or recipe["attack"]


def _optimizer(parser, args, recipe):
    theirs = recipe["optimizer"]
    if args.optimizer not in (None, theirs) and args.lr is None:
        parser.error(f"--optimizer {args.optimizer} needs --lr: the learning rate in "
                     f"{args.dataset}'s recipe is meant for {theirs}")
    args.optimizer = args.optimizer or theirs
    if args.optimizer != "sgd":
        _refuse(parser, args, ("momentum", "nesterov"), f"is for SGD, not for {args.optimizer}")
    elif args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs a --momentum above 0")


def _pruning(parser, args):
    args.prune = args.prune or "none"
    if args.prune == "none":
        _refuse(parser, args, ("p", "class_balanced"), "has no effect without --prune")
    if args.prune in ("none", "random") and not args.adapt_eps:
        alone = ("epoch",) if args.prune == "none" else ()
        _refuse(parser, args, ("score", "scores", *MARGIN, *alone),
                f"has no effect with --prune {args.prune}; leave it out")
    _margins(parser, args)
    prunes = args.prune != "none" or args.adapt_eps
    if args.epoch is None and prunes:
        args.epoch = 0 if args.scores or args.margin_model else recipes.PRUNE_EPOCH
    if args.epoch is not None and args.epoch >= args.epochs:
        parser.error(f"--epoch {args.epoch} is too late: it must leave some of the {args.epochs} "
                     "--epochs to train on what is kept")
    if args.score == "running-loss" and args.epoch == 0 and not args.scores:
        parser.error("--score running-loss needs an epoch of training first: --epoch 1 or more")
    args.p = 0.0 if args.prune == "none" else recipes.P if args.p is None else args.p


def _margins(parser, args):
    """What --prune puma stands for, and the flags that are for margins only."""
    if args.prune == "puma":
        if args.score not in (None, "margin"):
            parser.error(f"--prune puma drops by margin, not by --score {args.score}")
        args.adapt_eps = True
    if args.adapt_eps and args.score not in (None, "margin"):
        parser.error(f"--adapt-eps needs margins, not --score {args.score}")
    args.score = args.score or ("margin" if args.adapt_eps else "loss")
    if args.score != "margin" or args.scores:
        _refuse(parser, args, MARGIN, "applies only with --score margin, and not with --scores")
    if not args.adapt_eps:
        _refuse(parser, args, recipes.ADAPT, "applies only with --adapt-eps")
    elif args.margin_norm == "l2":
        parser.error("--adapt-eps needs --margin-norm linf: the attack's budget is l-infinity")
    elif args.attack == "none" or args.epsilon == 0:
        parser.error("--adapt-eps needs an attack with a budget, not --attack none or --epsilon 0")
    _fill(args, {**recipes.MARGIN, **recipes.ADAPT})


def network(args: argparse.Namespace, channels: int, classes: int, size: int) -> dict:
    """What models.build takes, and config.json records, for images [channels, size, size]."""
    name = args.model or models.DEFAULT[channels]
    made = dict(name=name, channels=channels, classes=classes, width=args.width, size=size)
    if custom.is_file(name):
        made["sha256"] = custom.digest(custom.source(name))
    return made
