"""Score the training examples of a finished run, and select which to keep.

    python prune.py runs/NAME --score loss --prune high --p 0.4

scores the training set of the run with the run's final weights. It writes a new folder (--out, or
runs/NAME/prune-SCORE-STRATEGY-P) with scores.npz (scores, labels, kept ids) and pruned.png (a
histogram, and the examples of highest and lowest score). `train.py --scores FILE` prunes by it.

Scores          loss          cross-entropy on the RS+FGSM example, eval mode, no augmentation
                clean-loss    cross-entropy on the example itself
                margin        DeepFool's distance to the decision boundary in --norm; 0 where the
                              run's network is wrong, the largest possible distance where
                              DeepFool finds no boundary
                running-loss  the training loss of each example in the last epoch; it needs no
                              extra pass (train.py only)
Strategies      high, low     drop the highest, or the lowest, scores
                low+high      drop half from each end
                middle        drop the scores nearest the mean
                random        drop any examples        none     drop nothing
                puma          high with --score margin (train.py also adapts the budgets)

Scoring that was interrupted continues when the same command is given again.
"""
if __name__ == "__main__":  # before the imports that take long
    from advprune import signals

    signals.die_of_interrupts()

import hashlib
import json
import sys
import time
from pathlib import Path

from tqdm import tqdm

from advprune import (
    cli,
    data,
    files,
    locks,
    models,
    processes,
    pruning,
    recipes,
    runs,
    saved,
    settings,
)


def parse(argv):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("run", help="a finished run's directory")
    flag("--score", choices=pruning.SCORES, help="default: loss; margin for --prune puma")
    flag("--norm", choices=["linf", "l2"], help="norm of --score margin (linf)")
    flag("--classes", type=cli.number(int, 2), metavar="K",
         help="for --score margin: search boundaries to the K - 1 next best classes only (all)")
    flag("--steps", type=cli.positive_int,
         help="for --score margin: DeepFool's largest number of steps (50)")
    flag("--prune", choices=settings.STRATEGIES, default="high",
         help="what to drop (high)")
    flag("--p", type=cli.fraction, default=recipes.P,
         help=f"fraction to drop, 0 <= p < 1 ({recipes.P})")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--batch-size", type=cli.positive_int, help="images at a time (500; 128 on a CPU)")
    flag("--data-dir", help="where the data sets are (as for the run)")
    flag("--cache-dir", metavar="DIR", help="where decoded images are kept (as for the run)")
    flag("--out", metavar="DIR", help="a new folder for scores.npz and pruned.png")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    flag("--trust-code", action="store_true",
         help="execute network code that the run brings along")
    args = parser.parse_args(argv)
    if args.prune == "puma" and args.score not in (None, "margin"):
        parser.error(f"--prune puma drops by margin, not by --score {args.score}")
    args.score = args.score or ("margin" if args.prune == "puma" else "loss")
    for name in ("norm", "classes", "steps"):
        if args.score != "margin" and getattr(args, name) is not None:
            parser.error(f"--{name} is for --score margin")
        setattr(args, name, getattr(args, name) or recipes.MARGIN[f"margin_{name}"])
    return args


def state_file(out, model, *used):
    """The file, beside `out`, for this process's share of this scoring."""
    digest = hashlib.sha256(json.dumps([saved.fingerprint(model), *used]).encode())
    share = f"{processes.rank()}of{processes.world()}"
    return Path(f"{out}.{digest.hexdigest()[:12]}-{share}.state")


@cli.script
def main(argv=None):
    args = parse(argv)
    cli.if_interrupted(lambda: "the same command continues the scoring")
    config, device = runs.config(args.run), cli.device(args.device)
    kind = pruning.kind_name(args.score, args.norm)
    balanced = "-balanced" if args.class_balanced else ""
    out = args.out or f"{args.run}/prune-{kind}-{args.prune}{balanced}-{args.p:g}"
    runs.check_folder(out)
    processes.join(device)
    model = saved.from_run(args.run, config, args.trust_code).to(device)
    if runs.record(args.run).get("collapsed"):
        print(f"prune.py: {args.run} collapsed, so its scores say little: the network withstands "
              "no attack; train it with --recipe robust", file=sys.stderr)
    used = config["args"]
    dataset = data.of_run(used, args.data_dir, device, cache_dir=args.cache_dir)
    how = {"eps": used["epsilon"], "alpha": used["score_alpha"], "seed": used["seed"],
           "epoch": used["epochs"], "clip_start": used["clip_start"]}
    if args.score == "margin":
        how = {"norm": args.norm, "steps": args.steps, "classes": args.classes}
    state = state_file(out, model, args.score, how, dataset.name, len(dataset.labels))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    runs.check_writable(state)
    locks.lock(state.with_suffix(".lock"), f"the scoring of {args.run}")

    start, first = time.perf_counter(), processes.rank() == 0
    with tqdm(total=len(dataset.labels), unit="img", desc="scoring",
              disable=None if first else True) as bar:
        scores = pruning.score(model, dataset.images, dataset.labels, args.score, **how,
                               batch_size=args.batch_size, bar=bar, state=state)
    labels = dataset.labels if args.class_balanced else None
    kept = pruning.select(scores, settings.strategy(args.prune), args.p, used["seed"], labels)
    record = {"source": args.run, "score": args.score, "prune": args.prune, "p": args.p,
              "n": len(scores), "n_kept": len(kept), "scores_file": str(Path(out) / "scores.npz"),
              "seconds": time.perf_counter() - start}
    if args.score == "margin":
        far = pruning.farthest(dataset.images, args.norm)
        record |= {**how, "misclassified": int((scores == 0).sum()),
                   "not_crossed": int((scores == far).sum())}
    if first:
        from advprune import plots  # here, because matplotlib's import takes a second

        with runs.new_folder(out) as folder:
            pruning.save(folder / "scores.npz", scores, dataset.labels, kept, kind)
            files.write_figure(folder / "pruned.png", plots.pruned(
                dataset, scores, kept, lambda images: models.predict(model, images),
                f"{args.run}: {kind}, {args.prune}, p = {args.p:g}"))
        report(record)
    state.unlink(missing_ok=True)
    return record


def report(record):
    if record["score"] == "margin":
        print("{misclassified:,} misclassified, so their margin is 0; no boundary was found for "
              "{not_crossed:,}".format(**record))
    print("{n:,} examples scored in {seconds:.1f} s, {n_kept:,} kept: {scores_file}"
          .format(**record))


if __name__ == "__main__":
    main()
