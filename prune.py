"""Score the training examples of a finished run, and select which to keep.

    python prune.py runs/NAME --score loss --prune high --p 0.4

scores the training set of the run with the run's final weights. It writes a new folder (--out, or
runs/NAME/prune-SCORE-STRATEGY-P) with

    scores.npz      scores, labels, kept ids; `train.py --scores FILE` prunes by it
    scores.csv      a row for each example, in the order of the ids: image (its path below train/,
                    or its id), label, predicted (classes), loss, score, kept (1 or 0). The
                    loss is the cross-entropy of the image itself, whatever the score
    pruned.png      a histogram, and the examples of highest and lowest score

--suspects N prints the N examples of highest loss in scores.csv: those whose label the network
doubts most (docs/data.md). It needs no other scoring, so you may repeat the command with it.

Scores          loss          cross-entropy on the RS+FGSM example, eval mode, no augmentation
                clean-loss    cross-entropy on the example itself
                margin        DeepFool's distance to the decision boundary in --margin-norm; 0
                              if the run's network is wrong, the largest possible distance
                              if DeepFool finds no boundary
                running-loss  the training loss of each example in the last epoch; it needs no
                              extra pass (train.py only)
Strategies      high, low     drop the highest, or the lowest, scores
                low+high      drop half from each end
                middle        drop the scores nearest the mean
                extremes      drop the scores farthest from it, from whichever side
                random        drop any examples        none     drop nothing
                puma          high with --score margin (train.py also adapts the budgets)
                FILE.py:NAME  a rule of your own; --score takes a score of your own so too
                              (docs/strategies.md)

The same command again continues a scoring that was interrupted.
"""
import csv
import time
from pathlib import Path

import advprune.start  # noqa: F401  first, because others may not be installed

import torch
from tqdm import tqdm

from advprune import (
    attacks,
    checkpoint,
    config,
    console,
    data,
    distributed,
    files,
    models,
    ops,
    own_code,
    pruning,
    run,
    weights,
)
from advprune.errors import UserError

# What a scoring that was cut off leaves in its folder.
LEFT = (".lock-*", ".state-*", "scores.npz", "scores.csv", "pruned.png", ".*.part")


def parse(argv):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("run", help="a finished run's directory")
    flag("--score", type=config.own_or(tuple(pruning.SCORES), "score"), metavar="SCORE",
         help=f"{', '.join(pruning.SCORES)}, or FILE.py:NAME (loss; margin for --prune puma)")
    flag("--margin-norm", choices=["linf", "l2"], help="norm of --score margin (linf)")
    flag("--margin-classes", type=console.number(int, 2), metavar="K",
         help="for --score margin: search boundaries to the K - 1 next best classes only (all)")
    flag("--prune", type=config.rule_name, default="high", metavar="RULE",
         help=f"what to drop: {', '.join(config.STRATEGIES)}, or FILE.py:NAME (high)")
    flag("--p", type=config.fraction, default=config.P,
         help=f"fraction to drop, 0 <= p < 1 ({config.P}); or {config.AUTO}: as many as have a "
         "wrong label by the run's network, at most half, none below 5 %%")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--suspects", type=console.positive_int, metavar="N",
         help="print the N examples whose label the network doubts most")
    flag("--batch-size", type=console.positive_int, help="images at a time (500; 128 on a CPU)")
    flag("--data-dir", help="where the data sets are (as for the run)")
    flag("--cache-dir", metavar="DIR", help="where decoded images are kept (as for the run)")
    flag("--labels", metavar="FILE", help="where the run's --labels are (as for the run)")
    flag("--extra-data", metavar="FILE", action="append",
         help="where the run's generated images are (as for the run)")
    flag("--out", metavar="DIR", help="the folder of what is written")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    flag("--trust-code", action="store_true",
         help="execute network code that the run brings along")
    args = parser.parse_args(argv)
    if args.prune == "puma" and args.score not in (None, "margin"):
        raise UserError(f"--prune puma drops by margin, not by --score {args.score}")
    if args.class_balanced and own_code.is_file(args.prune):
        raise UserError("--class-balanced is for the built-in rules; yours gets the labels")
    if args.p == config.AUTO:
        config.check_auto(args)
    args.score = args.score or ("margin" if args.prune == "puma" else
                                "clean-loss" if args.p == config.AUTO else "loss")
    for name in ("margin_norm", "margin_classes"):
        if args.score != "margin" and getattr(args, name) is not None:
            raise UserError(f"{console.flag(name)} is for --score margin")
    args.margin_norm = args.margin_norm or "linf"
    return args


def options(args, used):
    """pruning.score's arguments, as a run with these settings was trained."""
    if args.score == "margin":
        return {"norm": args.margin_norm, "classes": args.margin_classes}
    return {"eps": used.epsilon, "alpha": used.score_alpha, "seed": used.seed,
            "epoch": used.epochs, "clip_start": used.clip_start}


def main(argv=None):
    args = parse(argv)
    of_run = run.read_config(args.run)
    used = config.moved(of_run["settings"], args)
    device = console.device(args.device)
    distributed.join(device)
    codes = {flag: own_code.source(name, flag) for flag in ("score", "prune")
             if own_code.is_file(name := getattr(args, flag))}
    kind = pruning.kind_name(own_code.short(args.score), args.margin_norm)
    balanced = "-balanced" if args.class_balanced else ""
    rule = own_code.short(args.prune)
    named = f"prune-{kind}-{rule}{balanced}-{config.shown_p(args.p)}".replace(".py:", "-")
    out = Path(args.out or f"{args.run}/{named}")
    model = weights.of_run(args.run, args.trust_code).to(device)
    run.doubt_scores(args.run, args.p)
    how = options(args, used)
    asked = {"weights": weights.fingerprint(model), "score": args.score, "prune": args.prune,
             "p": args.p, "class_balanced": args.class_balanced, **how,
             **{f"{flag}_sha256": own_code.digest(code) for flag, code in codes.items()}}
    record = run.finished(out / "prune.json", {"asked": asked}, LEFT)
    if not record:
        data_dir = args.data_dir or of_run["data_dir"]
        dataset = data.of_run(used, data_dir, args.cache_dir or of_run["cache_dir"], device)
        data.check(dataset, used, of_run["data"], ["train"], data_dir)
        out.mkdir(parents=True, exist_ok=True)
        with (console.if_interrupted(lambda: "the same command continues the scoring"),
              files.locked(out / f".lock-{distributed.rank()}", f"the scoring of {args.run}")):
            record = score(args, asked, how, used, model, dataset, out, codes)
    if distributed.rank() == 0:
        if args.suspects:
            record |= {"suspects": suspects(out / "scores.csv", args.suspects)}
        report(record)
    return record


class Progress:
    """The state of this process's share of a scoring, for what was asked."""

    def __init__(self, out, asked):
        share = f"{distributed.rank()}of{distributed.world()}"
        self.file, self.asked = checkpoint.State(out / f".state-{share}"), asked

    def read(self, device):
        found = self.file.read(device)
        if found and found["asked"] != self.asked:
            raise UserError(f"{self.file.path} belongs to another scoring; give another --out")
        return found and found["content"]

    def write(self, content):
        self.file.write({"asked": self.asked, "content": content})


def score(args, asked, how, used, model, dataset, out, codes):
    """Score, select, and write what the folder `out` is to hold; the record."""
    scorer, rule = (own_code.loaded(getattr(args, flag), codes[flag], flag) if flag in codes
                    else name for flag, name in (("score", args.score),
                                                 ("prune", config.strategy(args.prune))))
    if isinstance(scorer, type):
        raise UserError(f"--score {own_code.short(args.score)} is a class, which sees a training: "
                        "it is for train.py")
    start, first = time.perf_counter(), distributed.rank() == 0
    state = Progress(out, asked)
    data.seed_all(used.seed)  # a user's score may draw, and so may a rule
    with tqdm(total=len(dataset.labels), unit="img", desc="scoring",
              disable=None if first else True) as bar:
        scores = pruning.score(model, dataset.images, dataset.labels, scorer, **how,
                               batch_size=args.batch_size, bar=bar, state=state)
    p, share = args.p, None
    if p == config.AUTO:
        share = pruning.wrong_share(model, dataset.images, dataset.labels, args.batch_size)
        p = pruning.automatic(share)[0]
    data.seed_all(used.seed)
    kept, weights = pruning.keep(rule, scores, dataset.labels, p, seed=used.seed,
                                 epoch=used.epochs, class_balanced=args.class_balanced,
                                 model=model, images=dataset.images)
    losses, predicted = judged(model, dataset, args.batch_size)
    record = {"source": args.run, "score": args.score, "prune": args.prune, "p": p,
              "wrong_share": share, "n": len(scores), "n_kept": len(kept),
              "scores_file": str(out / "scores.npz"), "seconds": time.perf_counter() - start,
              "asked": asked}
    if args.score == "margin":
        far = pruning.farthest(dataset.images, args.margin_norm)
        record |= {**how, "misclassified": int((scores == 0).sum()),
                   "not_crossed": int((scores == far).sum())}
    if first:
        from advprune import plots  # here, because matplotlib's import takes a second

        kind = pruning.kind_name(own_code.short(args.score), args.margin_norm)
        run.write_scores(out / "scores.npz", scores, dataset.labels, kept, kind, weights)
        names, stays = [*dataset.classes, "none"], set(kept.tolist())  # a prediction of -1
        files.write_csv(out / "scores.csv", [
            {"image": dataset.image_name(i), "label": names[label], "predicted": names[guess],
             "loss": loss, "score": score, "kept": int(i in stays)}
            for i, (label, guess, loss, score) in enumerate(zip(
                *(column.tolist() for column in (dataset.labels, predicted, losses, scores)),
                strict=True))])
        files.write_figure(out / "pruned.png", plots.pruned(
            dataset, scores, kept, lambda images: models.predict(model, images),
            f"{args.run}: {kind}, {own_code.short(args.prune)}, p = {p:g}"))
        files.write_json(out / "prune.json", record)
    state.file.delete()
    return record


def judged(model, dataset, batch_size):
    """(cross-entropy, predicted class) [N] of the training images themselves."""
    predicted = torch.zeros_like(dataset.labels)

    def loss(model, x, labels, ids):
        logits = attacks.logits_of(model, x)
        predicted[ids] = attacks.predicted(logits).to(predicted.device)
        return ops.cross_entropy_scores(logits.float(), labels)[0]

    losses = pruning.score(model, dataset.images, dataset.labels, loss, batch_size=batch_size)
    return losses, distributed.total(predicted)


def suspects(path, n):
    """The n rows of highest loss of the scores.csv at `path`."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = [{**{name: row[name] for name in ("image", "label", "predicted")},
                     "loss": float(row["loss"])} for row in csv.DictReader(file)]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not what prune.py wrote; put that back, or give another "
                        "--out") from None
    return sorted(rows, key=lambda row: -row["loss"])[:n]


def report(record):
    if record["wrong_share"] is not None:
        print(pruning.automatic(record["wrong_share"])[1])
    if record["score"] == "margin":
        print("{misclassified:,} misclassified, so their margin is 0; no boundary was found for "
              "{not_crossed:,}".format(**record))
    print("{n:,} examples scored in {seconds:.1f} s, {n_kept:,} kept: {scores_file}"
          .format(**record))
    if found := record.get("suspects"):
        width = max(len(row[name]) for row in found for name in ("label", "predicted"))
        print("the labels that the network doubts most: loss, label, prediction, image")
        for row in found:
            print("{loss:8.3f}  {label:{0}}  {predicted:{0}}  {image}".format(width, **row))


if __name__ == "__main__":
    console.run(main)
