"""Clean and adversarial accuracy of a run, or of a weights file, on test images.

    python evaluate.py runs/NAME --attack autoattack --n 1000
    python evaluate.py --weights mnist.pth --dataset mnist --attack pgd

Attacks, in the l-infinity ball of --epsilon and the box [0, 1]:
    clean       no attack; if it is the only one, all test images are used
    fgsm        one step of size eps from the image itself
    pgd         PGD-50-10: 50 steps, 10 restarts, as fast_adversarial evaluates
    pgd-20      20 steps from one random start: weaker, and fast enough for all test images
    autoattack  AutoAttack standard (Croce & Hein 2020): apgd-ce, apgd-t, fab-t, square. With 2 or
                3 classes apgd-t is not defined; then the record and the table say "not standard"
    apgd-ce, apgd-t, fab-t, square    its members singly; apgd is apgd-ce

An image counts as robust only if no chosen attack breaks it. Every adversarial image is checked
against ball and box, and the network classifies it again. With --until WIDTH the evaluation stops
as soon as the 95 % interval of the robust accuracy is narrower than that.

It writes RUN/eval-ATTACK-N.json (of weights, runs/NAME-DIGEST-ATTACK-N.json), or --out FILE, and
overwrites nothing. The same command again continues what was cut off. --save FILE.npz keeps the
images as they were judged:

    adversarial   float32 [n, C, H, W] in [0, 1]: of each image the adversarial example that broke
                  it, or the last that it stood; the image itself if that is classified wrong,
                  or stood AutoAttack's members alone, which give back what they do not break
    labels, predicted   int64 [n]: the class, and what is predicted for `adversarial`; -1 is none
    robust        bool [n]: no attack broke it

--pictures FILE.png shows twelve of them beside the images, first those that were broken.

    python evaluate.py runs/NAME --export DIR

attacks nothing. It writes the network into a new folder, for use without advprune (docs/ship.md).
"""
import argparse
import sys
from pathlib import Path

import advprune.start  # noqa: F401  first, because others may not be installed

from advprune import (
    checkpoint,
    config,
    console,
    data,
    evaluation,
    export,
    files,
    models,
    run,
    weights,
)
from advprune.config import RECIPES
from advprune.errors import UserError
from advprune.evaluation import ATTACKS, FEW_CLASSES, Evaluation


def attack_names(text):
    names = text.split(",")
    if unknown := [name for name in names if name not in ATTACKS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ATTACKS)}")
    return names


def parse(argv):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", help="a finished run's directory")
    flag("--weights", metavar="FILE", help="instead of a run: a state dict, .pth or .safetensors")
    flag("--dataset", choices=list(RECIPES), help="with --weights: what to evaluate on")
    flag("--model", type=config.model_name, help="with --weights: as for train.py")
    flag("--width", type=console.positive_int, help="with --weights: as for train.py")
    config.normalisation_flags(flag)
    flag("--image-size", type=console.positive_int, metavar="PIXELS",
         help="with --weights and --dataset folder: side of the images "
              f"({config.shown('image_size')})")
    flag("--skip-bad", action="store_true",
         help="with --weights and --dataset folder: leave out images that cannot be used")
    flag("--attack", type=attack_names, default=["pgd", "autoattack"], metavar="A,B",
         help=f"of {', '.join(ATTACKS)} (pgd,autoattack)")
    flag("--n", type=console.positive_int, help="the first N test images (1000; with "
         "--attack clean alone or --until, all)")
    flag("--until", type=console.number(float, 0, 1, open_low=True, open_high=True),
         metavar="WIDTH", help="judge batch after batch, at most N images, until the 95 %% "
         "interval of the robust accuracy is narrower")
    flag("--epsilon", type=console.budget, help="l-inf budget, such as 8/255 (as trained)")
    flag("--batch-size", type=console.positive_int, default=500, help="images at a time (500)")
    flag("--seed", type=console.seed, default=0, help="of the attacks (0)")
    flag("--data-dir", help="where the data sets are (as for the run, or data)")
    flag("--cache-dir", metavar="DIR", help="where decoded images are kept (as for the run)")
    flag("--out", metavar="FILE", help="the JSON file")
    flag("--save", metavar="FILE.npz", help="keep the adversarial images")
    flag("--pictures", metavar="FILE.png", help="draw twelve images before and after the attacks")
    flag("--trust-code", action="store_true",
         help="execute network code that the run brings along")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    flag("--export", metavar="DIR", help="attack nothing, and write the run's network into a new "
         "folder: state dict, torch.export, ONNX, RobustBench's layout")
    args = parser.parse_args(argv)
    if bool(args.run) == bool(args.weights):
        raise UserError("name a run's directory, or --weights FILE with its --dataset")
    for name in vars(args).keys() - {"run", "export", "trust_code"} if args.export else ():
        if getattr(args, name) != parser.get_default(name):
            raise UserError("--export takes a run and attacks nothing; leave out "
                            f"{console.flag(name)}")
    if args.weights and not args.dataset:
        raise UserError("--weights needs --dataset")
    for name in ("dataset", "model", "width", "mean", "std", "image_size", "skip_bad"):
        if args.run and getattr(args, name) not in (None, False):
            raise UserError(f"{console.flag(name)} is for --weights; a run has it recorded")
    if args.weights and args.dataset != "folder" and (args.image_size or args.skip_bad):
        raise UserError("--image-size and --skip-bad are for --dataset folder")
    if (args.save or args.pictures) and set(args.attack) == {"clean"}:
        raise UserError("--save and --pictures need an --attack other than clean")
    if args.weights:
        args.model = args.model or RECIPES[args.dataset]["model"]
        args.normalisation = config.normalisation(args)
    return args


def subject(args, device):
    """(model, data set, budget) of the run or the weights file; what is recorded of the latter.

    That is the network that was assumed, and the test set's checksum. A run has both.
    """
    assumed = checksum = None
    if args.run:
        of_run = run.read_config(args.run)
        model, used = weights.of_run(args.run, args.trust_code), of_run["settings"]
        data_dir = args.data_dir or of_run["data_dir"]
        dataset = data.of_run(used, data_dir, args.cache_dir or of_run["cache_dir"], device,
                              train=False)
        trained = of_run["network"]["classes"]
        if len(dataset.classes) != trained:
            raise UserError(f"{args.run} was trained on {trained} classes, but the test set has "
                            f"{len(dataset.classes)}")
        data.check(dataset, used, of_run["data"], ["test"], data_dir)
        eps = used.epsilon
    else:
        dataset = data.load(args.dataset, args.data_dir or "data", 0, device, args.image_size,
                            args.skip_bad, cache_dir=args.cache_dir)
        recipe, shape = RECIPES[args.dataset], dataset.test_images.shape
        model = models.build(args.model, shape[1], len(dataset.classes), args.width, shape[-1],
                             **args.normalisation)
        weights.load(model, args.weights)
        assumed, checksum = models.described(args.model, model), dataset.checksum("test")
        eps = recipe["epsilon"]
    if args.epsilon is not None:
        eps = args.epsilon
    for weight in model.parameters():  # torch.jit's networks have no requires_grad_
        weight.requires_grad = False
    return model.to(device).eval(), dataset, eps, assumed, checksum


def default_output(args, n, fingerprint):
    """The file of this evaluation, in the run's directory, or below runs/ for a weights file.

    The name of the latter has the weights' fingerprint: many a file is called model.safetensors.
    """
    stem = (f"{args.run}/eval" if args.run else
            f"runs/{Path(args.weights).stem}-{fingerprint[:8]}")
    stem += f"-{'+'.join(args.attack)}-{n}"
    stem += f"-eps{args.epsilon:.4g}" if args.epsilon is not None else ""
    stem += f"-s{args.seed}" if args.seed else ""
    stem += f"-until{args.until:.4g}" if args.until else ""
    stem += "-adversarial" if args.save or args.pictures else ""
    return Path(f"{stem}.json")


def main(argv=None):
    args = parse(argv)
    if args.export:
        return export.write(args.run, args.export, args.trust_code)
    device = console.device(args.device)
    model, dataset, eps, assumed, checksum = subject(args, device)
    every, classes = len(dataset.test_labels), len(dataset.classes)
    n = min(every, args.n or (every if args.attack == ["clean"] or args.until else 1000))
    if "apgd-t" in args.attack and classes in FEW_CLASSES:
        raise UserError(f"apgd-t is not defined for {classes} classes; leave it out of --attack, "
                        "or take autoattack")
    used = {
        "weights": weights.fingerprint(model), "network": assumed, "dataset": dataset.name,
        "data": checksum, "n": n,
        "attacks": evaluation.of_names(args.attack, classes), "epsilon": eps,
        "step": RECIPES[dataset.name]["eval_alpha"] * eps, "seed": args.seed,
        "batch_size": args.batch_size, "until": args.until,
        **{name: path for name in ("save", "pictures") if (path := getattr(args, name))}}
    out = Path(args.out) if args.out else default_output(args, n, used["weights"])
    if record := run.finished(out, {"settings": used}):
        report(record)
        return record
    state = checkpoint.State(out.with_suffix(".state"))
    more = [Path(path) for path in (args.save, args.pictures) if path]
    if len({out, state.path, *more}) < len(more) + 2:
        raise UserError("--out, --save and --pictures are files of different names, and not "
                        f"{state.path}, in which an evaluation keeps its state")
    if (begun := state.read()) and begun["settings"] != used:
        raise UserError(f"{out} was begun by another evaluation; give another --out, nothing is "
                        "overwritten")
    if not begun:
        for path in more:
            files.check_new(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with (console.if_interrupted(lambda: "the same command continues the evaluation"),
          files.locked(out.with_name(f".{out.name}.lock"), f"{out}")):
        work = Evaluation(model, dataset.test_images.narrow(0, 0, n), dataset.test_labels[:n],
                          used, state)
        if args.weights:
            warn_if_low(args.model, work, classes)
        work.run()
        record = {**verdict(args, work, classes), "by_class": work.by_class(dataset.classes),
                  "settings": used, "command": console.command("evaluate.py", argv),
                  **run.environment(device)}
        keep(args, work, dataset.classes)
        report(record)
        files.write_json(out, record)
        state.delete()
    return record


def warn_if_low(name, work, classes):
    """Say what to check if clean accuracy is far below that of a trained network."""
    n, right = len(work.labels), int(work.right.sum())
    least = config.LEAST_CLEAN.get(work.settings["dataset"])
    if (evaluation.interval(right, n)[1] >= least if least
            else not run.at_chance(right / n, work.labels, classes)):
        return
    forms = [form for form in models.FORMS if form.startswith(name) or name.startswith(form)]
    which = f" ({' or '.join(forms)})" if forms else ""
    print(f"evaluate.py: clean accuracy {right / n:.4f} is far below that of a trained network; "
          f"check --model{which}, --mean and --std", file=sys.stderr)


def verdict(args, work, classes):
    """The record of a finished Evaluation."""
    n, used = work.judged, work.settings
    clean, count = int(work.right[:n].sum()), int(work.robust[:n].sum())
    record = {
        "source": args.run or args.weights, "dataset": used["dataset"],
        "attack": ",".join(args.attack), "n": n, "epsilon": used["epsilon"],
        "clean_accuracy": clean / n, "robust_accuracy": count / n,
        "robust_count": count, "per_attack": work.per_attack,
        "seconds": work.seconds, "max_perturbation": work.largest,
        "clean_interval": evaluation.interval(clean, n),
        "robust_interval": evaluation.interval(count, n), "seed": args.seed,
        "network": used["network"], "warnings": work.warnings}
    if args.until:
        record |= {"until": args.until, "stopped_early": n < len(work.labels)}
    if "autoattack" in args.attack:
        record["standard"] = classes not in FEW_CLASSES
    # 1: the image itself is classified right; it stood all attacks
    record["right"] = "".join(map(str, work.right[:n].int().tolist()))
    record["robust"] = "".join(map(str, work.robust[:n].int().tolist()))
    return record


def keep(args, work, classes):
    """Write the adversarial images, and draw them, if they were asked for."""
    n = work.judged
    found = {name: value[:n] for name, value in (
        *work.examples.items(), ("labels", work.labels), ("robust", work.robust))}
    if args.save:
        files.write_npz(args.save, **{name: value.cpu().numpy() for name, value in found.items()})
    if args.pictures:
        from advprune import plots  # here, because matplotlib's import takes a second

        files.write_figure(args.pictures, plots.attacked(
            work.images, right=work.right[:n], classes=classes, eps=work.settings["epsilon"],
            title=f"{args.run or args.weights}: {','.join(args.attack)}", **found))


def report(record):
    n, (low, high) = record["n"], record["robust_interval"]
    print("{source}: {n:,} test images of {dataset}, eps = {epsilon:.4g}".format(**record))
    if record["network"]:
        print(f"taken as {record['network']}")
    print(f"{'clean':>12} {record['clean_accuracy']:.4f}")
    for name, counts in record["per_attack"].items():
        print(f"{name:>12} {counts['robust_count'] / n:.4f}  "
              f"({counts['broken']} of {counts['attacked']} broken)")
    if record.get("standard") is False:
        print("not AutoAttack standard: apgd-t is not defined for so few classes")
    print(f"robust accuracy {record['robust_accuracy']:.4f} (95 % interval {low:.4f} to "
          f"{high:.4f}); largest perturbation {record['max_perturbation']:.6f}; "
          f"{record['seconds']:.1f} s")
    rows = record["by_class"]
    if 0 < len(rows) <= 20:
        print("     n   clean (95 % interval)        robust (95 % interval)       class")
        for row in rows:
            print("{n:6,d}   {clean_accuracy:.4f} ({0[0]:.4f} to {0[1]:.4f})  "
                  "{robust_accuracy:.4f} ({1[0]:.4f} to {1[1]:.4f})  {class}".format(
                      row["clean_interval"], row["robust_interval"], **row))
    if until := record.get("until"):
        print(f"the interval is {'' if high - low < until else 'not '}narrower than {until:g}; "
              + ("stopped early" if record["stopped_early"] else "all images were judged"))


if __name__ == "__main__":
    console.run(main)
