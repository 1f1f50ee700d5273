"""Score training examples and select which to keep.

    python prune.py runs/NAME --score loss --prune high --p 0.4

scores the training set of a finished run with its final weights and writes, into --out (default
runs/NAME/prune-SCORE-STRATEGY-P): scores.npz (scores, labels, kept ids) and pruned.png (a
histogram, the examples of highest and lowest score). `train.py --scores FILE` prunes by that.

Scores          loss          cross-entropy on the RS+FGSM example, eval mode, no augmentation
                clean-loss    cross-entropy on the example itself
                margin        DeepFool's distance to the decision boundary in --norm, 0 where the
                              run's network is wrong, the box's diameter where none was found
                running-loss  the last training epoch's own losses: no extra pass (train.py only)
Strategies      high, low     drop that tail              low+high  drop half from each tail
                middle        drop what is nearest the mean          random, none
                puma          high, of margins (train.py adapts the budgets too)

Interrupted, scoring goes on where it was when asked for the same again.
"""
import hashlib
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import attacks
import data
import models
import ops
import runs

SCORES = ["loss", "clean-loss", "margin", "running-loss"]
STRATEGIES = ["none", "random", "high", "low", "low+high", "middle", "puma"]
SAVE_SECONDS = 10.0  # how much scoring an interruption may cost


def score(model, dataset, kind="loss", *, eps=None, alpha=None, seed=0, epoch=0, clip_start=False,
          norm="linf", steps=50, classes=None, batch_size=500, bar=None, state=None):
    """Scores [N] float32 of the whole training set, keyed by id; sharded over the processes.

    kind `loss` is Algorithm 1's line 6, on the example that RS+FGSM makes with this eps, alpha,
    seed and epoch; `clean-loss` is section 5.1's. `margin` is the DeepFool distance in this norm,
    steps and classes as there; an example of no boundary found scores `farthest`. The model is in
    eval mode meanwhile. `state` is a Path to keep what is done in, and to go on from; it is the
    caller's to key by the arguments, and to remove.
    """
    ids = torch.arange(len(dataset.labels), device=dataset.labels.device)
    scores, done = torch.zeros(len(ids), device=ids.device), 0
    if state and state.exists():
        scores, done = torch.load(state, map_location=ids.device, weights_only=True)
    shard, saved = ids[runs.rank()::runs.world()], time.monotonic()
    if bar is not None:
        bar.n = bar.initial = done * runs.world()
    try:
        with attacks.frozen(model), torch.no_grad():
            for batch in shard[done:].split(batch_size):
                x, y = dataset.images[batch], dataset.labels[batch]
                if kind == "loss":
                    x = attacks.rs_fgsm(model, x, y, batch, eps=eps, alpha=alpha, seed=seed,
                                        epoch=epoch, clip_start=clip_start)
                scores[batch] = (_margins(model, x, y, norm, steps, classes) if kind == "margin"
                                 else ops.cross_entropy_scores(model(ops.pixels(x)), y)[0])
                done += len(batch)
                if bar is not None:
                    bar.update(len(batch) * runs.world())
                if state and time.monotonic() - saved > SAVE_SECONDS:
                    runs.write_saved(state, torch.save, (scores, done))
                    saved = time.monotonic()
    finally:
        if state:
            runs.write_saved(state, torch.save, (scores, done))
    scores = runs.total(scores)
    if bad := int((~scores.isfinite()).sum()):
        raise runs.UserError(f"{bad} of the {len(scores)} {kind} scores are not finite: the "
                             "network's output is not, on these examples")
    return scores


def farthest(images, norm):
    """The box's diameter: no example [C, H, W] of images [N, C, H, W] has a larger margin."""
    return 1.0 if norm == "linf" else math.sqrt(math.prod(images.shape[1:]))


def _margins(model, x, y, norm, steps, classes):
    found = attacks.deepfool(model, x, y, norm, steps, classes=classes)
    # A walk that ended short of the boundary says that it is far, not how far it went. NaN stays.
    return torch.where(found.crossed, found.distance, found.distance.clamp(min=farthest(x, norm)))


def select(scores, how, p, seed=0, labels=None):
    """The sorted ids that stay when a fraction p of scores [n] goes: n - round(p n) of them.

    how is one of STRATEGIES; of equal scores at a cut the lowest ids stay. With labels [N] every
    class loses the same fraction: round(p n) is shared out by largest remainder. The result
    depends on nothing but the arguments. Raises ValueError for p outside [0, 1), unknown `how`,
    non-finite scores (it says how many).
    """
    if how not in STRATEGIES:
        raise ValueError(f"unknown strategy {how!r}: choose from {', '.join(STRATEGIES)}")
    if not 0 <= p < 1:
        raise ValueError(f"p is the fraction to drop, at least 0 and below 1, not {p}")
    ids = torch.arange(len(scores), device=scores.device)
    drop = 0 if how == "none" else round(p * len(scores))
    generator = torch.Generator().manual_seed(seed)
    if labels is None or drop == 0:
        return _keep(scores, ids, how, drop, generator)
    members = [ids[labels == c] for c in labels.unique()]
    shares = [p * len(member) for member in members]
    quota = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda c: quota[c] - shares[c])
    for c in by_remainder[:drop - sum(quota)]:
        quota[c] += 1
    kept = [_keep(scores[m], m, how, q, generator) for m, q in zip(members, quota, strict=True)]
    return torch.cat(kept).sort().values


def _keep(scores, ids, how, drop, generator):
    """The sorted rest of these ids when `drop` of them go."""
    if drop == 0:
        return ids
    if how == "random":
        kept = torch.randperm(len(ids), generator=generator)[drop:]
        return ids[kept.sort().values.to(ids.device)]
    return ids[ops.select_kept(scores, drop, "high" if how == "puma" else how)]


def adapt(margins, kept, eps, fraction=1.0, floor=0.0):
    """The budget of every example [N]: clip(margin, floor, eps) on the lowest margins, eps else.

    margins [N] in [0, 1] pixels; of the `kept` ids the `fraction` of lowest margin is adapted. So
    no adapted example is pushed across the margin model's boundary, and one that it misclassifies
    has the floor. OUR reading of PUMA's abstract (Maroto & Frossard 2024), which gives no formula.
    """
    budgets = torch.full_like(margins, eps)
    lowest = kept[margins[kept].argsort(stable=True)[:round(fraction * len(kept))]]
    budgets[lowest] = margins[lowest].clamp(min(floor, eps), eps)
    return budgets


def save(path, scores, labels, kept, kind):
    """Write scores, their kind, labels and kept ids as an npz that appears whole."""
    arrays = {"scores": scores.cpu().numpy(), "labels": labels.cpu().numpy(),
              "kept": kept.cpu().numpy(), "kind": np.array(kind)}
    runs.write_saved(path, lambda content, file: np.savez(file, **content), arrays)


def load(path, labels, kind=None):
    """(scores [N], kind) that `save` wrote. Raises UserError unless they are of these labels [N].

    Where a kind is asked for, they must be of that kind; a file without one is trusted.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            scores, its_labels = file["scores"], file["labels"]
            its_kind = str(file["kind"]) if "kind" in file else kind or "given"
    except Exception as error:  # numpy and zipfile raise half a dozen kinds
        raise runs.UserError(f"{path} is no score file with scores and labels: {error}") from None
    if kind and its_kind != kind:
        raise runs.UserError(f"{path} holds scores of kind {its_kind}, but {kind} is needed")
    if scores.shape != tuple(labels.shape):
        raise runs.UserError(f"{path} scores {scores.size} examples, "
                             f"but the training set has {len(labels)}")
    if not np.array_equal(its_labels, labels.cpu().numpy()):
        raise runs.UserError(f"{path} belongs to another training set: its labels differ")
    if bad := int((~np.isfinite(scores)).sum()):
        raise runs.UserError(f"{bad} of the {len(scores)} scores in {path} are not finite")
    return torch.as_tensor(scores, dtype=torch.float32, device=labels.device), its_kind


def draw(path, dataset, scores, kept, title, model):
    """A picture: histogram of kept and dropped, the 20 examples of highest and lowest score.

    The latter with their labels and what the model predicts: Figure 6's outliers, in real data.
    """
    from matplotlib.figure import Figure

    scores, dropped = scores.cpu(), np.ones(len(scores), bool)
    dropped[kept.cpu().numpy()] = False
    figure = Figure(figsize=(10, 7), layout="constrained")
    top, *sheets = figure.subfigures(3, 1, height_ratios=(3, 2, 2))
    axes = top.subplots()
    values = scores.numpy()
    axes.hist([values[~dropped], values[dropped]], 80, stacked=True, log=True,
              label=["kept", "dropped"], color=["tab:blue", "tab:red"])
    axes.set(xlabel="score", ylabel="examples", title=title)
    axes.legend()
    ranked = scores.argsort(descending=True)
    ends = ("highest", ranked[:20]), ("lowest", ranked.flip(0)[:20])
    for sheet, (name, ids) in zip(sheets, ends, strict=True):
        sheet.suptitle(f"{name} scores (label > prediction, score; red: dropped)",
                       fontsize="medium")
        images = dataset.images[ids.to(dataset.labels.device)]
        predicted = models.predict(model, images).tolist()
        for axes, i, image, guess in zip(sheet.subplots(2, 10).flat, ids.tolist(),
                                         images.cpu().permute(0, 2, 3, 1).numpy(), predicted,
                                         strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            label, guess = (dataset.classes[k] for k in (dataset.labels[i], guess))
            axes.set_title(f"{label} > {guess}\n{scores[i]:.3g}", fontsize=6, pad=2,
                           color="tab:red" if dropped[i] else "black")
            axes.set(xticks=[], yticks=[])
    runs.write_figure(path, figure)


def parse(argv):
    parser = runs.Parser(__doc__)
    flag = parser.add_argument
    flag("run", help="a finished run's directory")
    flag("--score", choices=SCORES[:3], help="default: loss; margin for --prune puma")
    flag("--norm", choices=["linf", "l2"], help="of --score margin (linf)")
    flag("--classes", type=runs.number(int, 2), metavar="K",
         help="of --score margin: only boundaries to the K - 1 next best classes (all)")
    flag("--steps", type=runs.positive_int, help="of --score margin: DeepFool's at most (50)")
    flag("--prune", choices=STRATEGIES, default="high", help="which part to drop (high)")
    flag("--p", type=runs.fraction, default=0.4, help="fraction to drop, 0 <= p < 1 (0.4)")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--batch-size", type=runs.positive_int, default=500)
    flag("--data-dir", help="where the data sets are (as for the run)")
    flag("--out", metavar="DIR", help="a new folder for scores.npz and pruned.png")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    args = parser.parse_args(argv)
    if args.prune == "puma" and args.score not in (None, "margin"):
        parser.error(f"--prune puma drops by margin, not by --score {args.score}")
    args.score = args.score or ("margin" if args.prune == "puma" else "loss")
    for name, default in (("norm", "linf"), ("classes", None), ("steps", 50)):
        if args.score != "margin" and getattr(args, name) is not None:
            parser.error(f"--{name} goes with --score margin")
        setattr(args, name, getattr(args, name) or default)
    return args


def state_file(run, model, settings):
    """Where this process keeps its share of a scoring: of the same network and settings only."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    share = f"{runs.rank()}of{runs.world()}"
    return Path(run) / f"scoring-{digest.hexdigest()[:12]}-{share}.state"


@runs.script
def main(argv=None):
    args = parse(argv)
    config, device = runs.config(args.run), runs.device(args.device)
    runs.join_processes(device)
    model = models.from_run(args.run, config).to(device)
    used = config["args"]
    dataset = data.of_run(used, args.data_dir, device)
    kind = "margin-l2" if args.norm == "l2" else args.score
    balanced = "-balanced" if args.class_balanced else ""
    out = args.out or f"{args.run}/prune-{kind}-{args.prune}{balanced}-{args.p:g}"
    runs.refuse_existing(out)
    settings = {"eps": used["epsilon"], "alpha": used["score_alpha"], "seed": used["seed"],
                "epoch": used["epochs"], "clip_start": used["clip_start"]}
    if args.score == "margin":
        settings = {"norm": args.norm, "steps": args.steps, "classes": args.classes}
    state = state_file(args.run, model, [args.score, settings, dataset.name, len(dataset.labels)])

    start, first = time.perf_counter(), runs.rank() == 0
    with tqdm(total=len(dataset.labels), unit="img", desc="scoring",
              disable=None if first else True) as bar:
        scores = score(model, dataset, args.score, **settings, batch_size=args.batch_size, bar=bar,
                       state=state)
    labels = dataset.labels if args.class_balanced else None
    kept = select(scores, args.prune, args.p, used["seed"], labels)
    record = {"source": args.run, "score": args.score, "prune": args.prune, "p": args.p,
              "n": len(scores), "n_kept": len(kept), "scores_file": str(Path(out) / "scores.npz"),
              "seconds": time.perf_counter() - start}
    if args.score == "margin":
        far = farthest(dataset.images, args.norm)
        record |= {**settings, "misclassified": int((scores == 0).sum()),
                   "not_crossed": int((scores == far).sum())}
    if first:
        save(runs.create(out, None) / "scores.npz", scores, dataset.labels, kept, kind)
        draw(Path(out) / "pruned.png", dataset, scores, kept,
             f"{args.run}: {kind}, {args.prune}, p = {args.p:g}", model)
        report(record)
    state.unlink(missing_ok=True)
    return record


def report(record):
    if record["score"] == "margin":
        print("{misclassified:,} misclassified, so of margin 0; {not_crossed:,} not across any "
              "boundary".format(**record))
    print("{n:,} examples scored in {seconds:.1f} s, {n_kept:,} kept: {scores_file}"
          .format(**record))


if __name__ == "__main__":
    main()
