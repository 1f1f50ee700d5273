"""The settings of a run of train.py: its flags, the recipe of each data set, what they imply."""
import argparse
from pathlib import Path

import data
import models
import prune
import runs

# peak: where in the run the learning rate is highest. clip_start: whether the random start stays
# in the image box, which fast_adversarial does for CIFAR-10 and not for MNIST.
MNIST = dict(epochs=10, batch_size=100, optimizer="adam", lr=5e-3, peak=0.4,
             clip_start=False, pad=0, flip=False, pgd_steps=40)
RECIPES = {
    "digits": {**MNIST, "epochs": 30, "batch_size": 32, "peak": 0.1, "pad": 1},
    "mnist": MNIST,
    "fashion-mnist": MNIST,
    "cifar10": dict(epochs=15, batch_size=128, optimizer="sgd", lr=0.2, peak=0.5,
                    clip_start=True, pad=4, flip=True, pgd_steps=10),
    # cifar10's, for twice as long: sets of 64x64 such as Tiny ImageNet have a tenth of the images
    # of each class and many more classes. The crop moves by an eighth of the side, as there.
    "folder": dict(epochs=30, batch_size=128, optimizer="sgd", lr=0.2, peak=0.5, clip_start=True,
                   flip=True, pgd_steps=10, image_size=data.IMAGE_SIZE),
    "synthetic": {**MNIST, "epochs": 5, "batch_size": 32, "peak": 0.2},
}


MARGIN = ("margin_model", "margin_norm", "margin_steps", "margin_classes")


def flags(doc):
    parser = runs.Parser(doc)
    for name, add in (("data", _data_flags), ("pruning", _pruning_flags),
                      ("training", _training_flags), ("the run", _run_flags)):
        add(parser.add_argument_group(name).add_argument)
    return parser


def _data_flags(flag):
    flag("--dataset", choices=data.NAMES, default="digits", help="default: digits (embedded)")
    flag("--data-dir", default="data", help="where data sets are or are downloaded to (data)")
    flag("--limit", type=runs.positive_int, metavar="N",
         help="train on the first N examples, beside all --extra-data")
    flag("--image-size", type=runs.positive_int, metavar="PIXELS",
         help=f"side of --dataset folder's images ({data.IMAGE_SIZE})")
    flag("--skip-bad", action="store_true", help="leave out images of the folder that are broken")
    flag("--extra-data", metavar="FILE", action="append",
         help="an npz of generated images to train on too; may be given several times")
    flag("--extra-fraction", type=runs.number(float, 0, 1, open_low=True),
         help="share of the kept --extra-data in a batch (0.7)")


def _pruning_flags(flag):
    flag("--prune", choices=prune.STRATEGIES, help="which part of the scores to drop (none)")
    flag("--p", type=runs.fraction, help="fraction to drop, 0 <= p < 1 (0.4)")
    flag("--epoch", type=runs.number(int, 0),
         help="full epochs before pruning (3, or 0 with --scores or --margin-model)")
    flag("--score", choices=prune.SCORES, help="see prune.py (loss; margin for --prune puma)")
    flag("--scores", metavar="FILE", help="prune by the scores in this npz of prune.py")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--margin-model", metavar="RUN-or-FILE", help="network of --score margin: a run, or "
         "weights of the network trained here (that network itself, as it is)")
    flag("--margin-norm", choices=["linf", "l2"], help="of --score margin (linf)")
    flag("--margin-steps", type=runs.positive_int, help="DeepFool's steps at most (50)")
    flag("--margin-classes", type=runs.number(int, 2), metavar="K",
         help="look for boundaries to the K - 1 next best classes alone (all)")
    flag("--adapt-eps", action="store_true",
         help="from the pruning on, train with eps_i = clip(margin_i, floor, eps)")
    flag("--adapt-fraction", type=runs.number(float, 0, 1, open_low=True),
         help="of the kept examples, those of lowest margin, are adapted (1: all)")
    flag("--eps-floor", type=runs.budget, help="the floor of --adapt-eps (0)")


def _training_flags(flag):
    flag("--attack", choices=["none", "rs-fgsm", "n-fgsm", "pgd"], help="default: rs-fgsm")
    flag("--loss", choices=["cross-entropy", "trades"], default="cross-entropy",
         help="trades: cross-entropy of x + beta KL(x || x'), x' by PGD on the KL")
    flag("--beta", type=runs.number(float, 0), help="of --loss trades (5)")
    flag("--label-smoothing", type=runs.fraction, default=0.0, help="of the cross-entropy (0)")
    flag("--ema", type=runs.fraction, metavar="DECAY",
         help="keep and give out the weights' exponential moving average, such as 0.995")
    flag("--epsilon", type=runs.budget, help="l-inf budget in [0, 1] pixels, such as 8/255")
    flag("--alpha", type=runs.number(float, 0), help="attack step in [0, 1] pixels")
    flag("--pgd-steps", type=runs.positive_int, help="steps of --attack pgd and --loss trades")
    flag("--epochs", type=runs.positive_int)
    flag("--batch-size", type=runs.positive_int, help="images an update, over all processes")
    flag("--lr", type=runs.number(float, 0, open_low=True), help="peak learning rate")
    flag("--schedule", choices=["cyclic", "cosine"], default="cyclic",
         help="down from the peak in a line, or, after 2.5 %% of the run, in half a cosine")
    flag("--nesterov", action="store_true", help="Nesterov's momentum, where the recipe has SGD")
    flag("--model", choices=models.MODELS, help="mnist-net (grey) or preactresnet18 (colour)")
    flag("--width", type=runs.positive_int, help="network width; models.py says what it counts")
    flag("--precision", choices=["fp32", "tf32", "bf16"], default="fp32", help="fp32 as published")
    flag("--compile", action="store_true", help="torch.compile the network")


def _run_flags(flag):
    flag("--seed", type=runs.seed, default=0)
    flag("--out", metavar="DIR", help="the run's new directory (runs/<what it is>)")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    flag("--tensorboard", action="store_true", help="also write TensorBoard events")
    flag("--resume", metavar="DIR", help="go on with this interrupted run, settings and all")


def parse(argv, doc=__doc__):
    """The settings of a run, its recipe filled in; or those of the run that --resume names."""
    parser = flags(doc)
    args = parser.parse_args(argv)
    if args.resume:
        for name in vars(args).keys() - {"resume", "device"}:
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--resume keeps the run's settings; leave out "
                             f"--{name.replace('_', '-')}")
        stored = runs.config(args.resume)["args"]
        given = {"resume": args.resume, "device": args.device}
        return argparse.Namespace(**{**vars(args), **stored, **given})  # args: for an old run
    args.command = runs.command("train.py", argv)
    for name in ("scores", "margin_model"):  # found from anywhere, by --resume too
        if getattr(args, name):
            setattr(args, name, str(Path(getattr(args, name)).resolve()))
    _extra_data(parser, args)
    _loss_and_attack(parser, args)
    for name, value in {**RECIPES[args.dataset], "epsilon": data.EPSILON[args.dataset]}.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    if args.schedule == "cosine":
        args.peak = 0.025  # Wang et al. 2023
    if args.nesterov and args.optimizer != "sgd":
        parser.error(f"--nesterov is of SGD, and {args.dataset}'s recipe has {args.optimizer}")
    if args.dataset == "folder":
        args.pad = args.image_size // 8
    elif args.image_size or args.skip_bad:
        parser.error("--image-size and --skip-bad are for --dataset folder")
    if args.alpha is None:  # in budgets, so that it follows --epsilon
        pgd_step = data.PGD_STEP[args.dataset] / data.EPSILON[args.dataset]
        args.alpha = {"n-fgsm": 1.0, "pgd": pgd_step}.get(args.attack, 1.25) * args.epsilon
    args.score_alpha = args.alpha if args.attack == "rs-fgsm" else 1.25 * args.epsilon
    args.prune = args.prune or "none"
    if args.prune == "none":
        _refuse(parser, args, ("p", "class_balanced"), "does nothing without --prune high, say")
    if args.prune in ("none", "random") and not args.adapt_eps:
        alone = ("epoch",) if args.prune == "none" else ()
        _refuse(parser, args, ("score", "scores", *MARGIN, *alone),
                f"does nothing with --prune {args.prune}")
    _margins(parser, args)
    prunes = args.prune != "none" or args.adapt_eps
    if args.epoch is None and prunes:
        args.epoch = 0 if args.scores or args.margin_model else 3
    if args.epoch is not None and args.epoch >= args.epochs:
        parser.error(f"--epoch {args.epoch} is too late: it must leave some of the {args.epochs} "
                     "--epochs to train on what is kept")
    if args.score == "running-loss" and args.epoch == 0 and not args.scores:
        parser.error("--score running-loss needs an epoch of training first: --epoch 1 or more")
    args.p = 0.0 if args.prune == "none" else 0.4 if args.p is None else args.p
    return args


def _refuse(parser, args, names, why):
    for name in names:
        if getattr(args, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')} {why}")


def _extra_data(parser, args):
    if not args.extra_data:
        _refuse(parser, args, ("extra_fraction",), "does nothing without --extra-data")
        return
    if args.score == "running-loss":
        parser.error("--score running-loss needs epochs that visit every example, and with "
                     "--extra-data they do not; use --score loss")
    args.extra_data = [str(Path(path).resolve()) for path in args.extra_data]
    args.extra_fraction = args.extra_fraction or 0.7  # as Wang et al. 2023


def _loss_and_attack(parser, args):
    """TRADES makes its own examples, by PGD; else the attack is RS+FGSM unless told."""
    if args.loss == "trades":
        if args.attack not in (None, "pgd"):
            parser.error(f"--loss trades has its own attack; leave out --attack {args.attack}")
        args.attack, args.beta = "pgd", 5.0 if args.beta is None else args.beta
    else:
        _refuse(parser, args, ("beta",), "is of --loss trades")
        args.attack = args.attack or "rs-fgsm"


def _margins(parser, args):
    """What --prune puma stands for, and what goes with margins only."""
    if args.prune == "puma":
        if args.score not in (None, "margin"):
            parser.error(f"--prune puma drops by margin, not by --score {args.score}")
        args.adapt_eps = True
    if args.adapt_eps and args.score not in (None, "margin"):
        parser.error(f"--adapt-eps needs margins, not --score {args.score}")
    args.score = args.score or ("margin" if args.adapt_eps else "loss")
    if args.score != "margin" or args.scores:
        _refuse(parser, args, MARGIN, "goes with --score margin, and without --scores")
    if not args.adapt_eps:
        _refuse(parser, args, ("adapt_fraction", "eps_floor"), "goes with --adapt-eps")
    elif args.margin_norm == "l2":
        parser.error("--adapt-eps compares margins with an l-inf budget: not --margin-norm l2")
    elif args.attack == "none" or args.epsilon == 0:
        parser.error("--adapt-eps has no budget to adapt with --attack none or --epsilon 0")
    for name, value in (("margin_norm", "linf"), ("margin_steps", 50), ("adapt_fraction", 1.0),
                        ("eps_floor", 0.0)):
        if getattr(args, name) is None:
            setattr(args, name, value)


def prepare(args, device):
    """The data set, checked against the settings before any work."""
    if args.precision == "tf32" and device.type != "cuda":
        raise runs.UserError("--precision tf32 needs a CUDA GPU; use fp32 or bf16 here")
    with runs.first_process_first():  # so that one downloads for all
        dataset = data.of_run(vars(args), device=device)
    n, channels, size = len(dataset.labels), dataset.images.shape[1], dataset.images.shape[-1]
    if round(args.p * n) == n:
        raise runs.UserError(f"--p {args.p} leaves none of the {n} examples")
    args.network = dict(name=args.model or models.DEFAULT[channels], channels=channels,
                        classes=len(dataset.classes), width=args.width, size=size)
    return dataset


def saved_scores(args, dataset):
    """(scores [N], kind) of --scores, margins where budgets need them; None without the flag."""
    if not args.scores:
        return None
    return prune.load(args.scores, dataset.labels, "margin" if args.adapt_eps else None)


def margin_model(args, device):
    """The network of --margin-model, of a run or of a weights file; None where it is not given."""
    if not args.margin_model:
        return None
    if Path(args.margin_model).is_dir():
        config = runs.config(args.margin_model)
        if odd := [name for name in ("channels", "classes", "size")
                   if config["args"]["network"][name] != args.network[name]]:
            raise runs.UserError(f"{args.margin_model} is of other data: not the same {odd[0]}")
        model = models.from_run(args.margin_model, config)
    else:
        model = models.load_weights(models.build(**args.network), args.margin_model)
    return model.to(device)
