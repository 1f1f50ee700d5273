"""Score training examples and select which to keep.

    python prune.py runs/NAME --score loss --prune high --p 0.4

scores the training set of a finished run with its final weights and writes, into --out (default
runs/NAME/prune-SCORE-STRATEGY-P): scores.npz (scores, labels, kept ids) and pruned.png (a
histogram, the examples of highest and lowest score). `train.py --scores FILE` prunes by that.

Scores          loss          cross-entropy on the RS+FGSM example, eval mode, no augmentation
                clean-loss    cross-entropy on the example itself
                running-loss  the last training epoch's own losses: no extra pass (train.py only)
Strategies      high, low     drop that tail              low+high  drop half from each tail
                middle        drop what is nearest the mean          random, none
"""
import time

import numpy as np
import torch
from tqdm import tqdm

import attacks
import data
import models
import ops
import runs

SCORES = ["loss", "clean-loss", "running-loss"]
STRATEGIES = ["none", "random", "high", "low", "low+high", "middle"]


def score(model, dataset, kind="loss", *, eps, alpha, seed=0, epoch=0, clip_start=False,
          batch_size=500, bar=None):
    """Scores [N] float32 of the whole training set, keyed by id; sharded over the processes.

    kind `loss` is Algorithm 1's line 6, on the example that RS+FGSM makes with this seed and
    epoch; `clean-loss` is section 5.1's. The model is in eval mode meanwhile.
    """
    ids = torch.arange(len(dataset.labels), device=dataset.labels.device)
    scores = torch.zeros(len(ids), device=ids.device)
    with attacks.frozen(model), torch.no_grad():
        for batch in ids[runs.rank()::runs.world()].split(batch_size):
            x, y = dataset.images[batch], dataset.labels[batch]
            if kind == "loss":
                x = attacks.rs_fgsm(model, x, y, batch, eps=eps, alpha=alpha, seed=seed,
                                    epoch=epoch, clip_start=clip_start)
            scores[batch], _ = ops.cross_entropy_scores(model(ops.pixels(x)), y)
            if bar is not None:
                bar.update(len(batch) * runs.world())
    return runs.total(scores)


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
    return ids[ops.select_kept(scores, drop, how)]


def save(path, scores, labels, kept):
    """Write scores, labels and kept ids as an npz that appears whole."""
    arrays = {"scores": scores.cpu().numpy(), "labels": labels.cpu().numpy(),
              "kept": kept.cpu().numpy()}
    runs.write_saved(path, lambda content, file: np.savez(file, **content), arrays)


def load(path, labels):
    """The scores [N] that `save` wrote. Raises UserError unless they are of these labels [N]."""
    try:
        with np.load(path, allow_pickle=False) as file:
            scores, its_labels = file["scores"], file["labels"]
    except Exception as error:  # numpy and zipfile raise half a dozen kinds
        raise runs.UserError(f"{path} is no score file with scores and labels: {error}") from None
    if scores.shape != tuple(labels.shape):
        raise runs.UserError(f"{path} scores {scores.size} examples, "
                             f"but the training set has {len(labels)}")
    if not np.array_equal(its_labels, labels.cpu().numpy()):
        raise runs.UserError(f"{path} belongs to another training set: its labels differ")
    if bad := int((~np.isfinite(scores)).sum()):
        raise runs.UserError(f"{bad} of the {len(scores)} scores in {path} are not finite")
    return torch.as_tensor(scores, dtype=torch.float32, device=labels.device)


def draw(path, dataset, scores, kept, title):
    """A picture: histogram of kept and dropped, the 20 examples of highest and lowest score."""
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
        sheet.suptitle(f"{name} scores (class, score; red: dropped)", fontsize="medium")
        for axes, i in zip(sheet.subplots(2, 10).flat, ids.tolist(), strict=False):
            image = dataset.images[i].cpu().permute(1, 2, 0).numpy()
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{dataset.classes[dataset.labels[i]]} {scores[i]:.3g}", fontsize=7,
                           pad=2, color="tab:red" if dropped[i] else "black")
            axes.set(xticks=[], yticks=[])
    runs.write_saved(path, lambda content, file: content.savefig(file, format="png"), figure)


@runs.script
def main(argv=None):
    parser = runs.Parser(__doc__)
    flag = parser.add_argument
    flag("run", help="a finished run's directory")
    flag("--score", choices=SCORES[:2], default="loss", help="default: loss")
    flag("--prune", choices=STRATEGIES, default="high", help="which part to drop (high)")
    flag("--p", type=runs.fraction, default=0.4, help="fraction to drop, 0 <= p < 1 (0.4)")
    flag("--class-balanced", action="store_true", help="drop the same fraction of each class")
    flag("--batch-size", type=runs.positive_int, default=500)
    flag("--data-dir", help="where the data sets are (as for the run)")
    flag("--out", metavar="DIR", help="a new folder for scores.npz and pruned.png")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    args = parser.parse_args(argv)
    config, device = runs.config(args.run), runs.device(args.device)
    model = models.from_run(args.run, config).to(device)
    used = config["args"]
    dataset = data.of_run(used, args.data_dir, device)
    balanced = "-balanced" if args.class_balanced else ""
    out = args.out or f"{args.run}/prune-{args.score}-{args.prune}{balanced}-{args.p:g}"
    runs.refuse_existing(out)

    start = time.perf_counter()
    with tqdm(total=len(dataset.labels), unit="img", desc="scoring", disable=None) as bar:
        scores = score(model, dataset, args.score, eps=used["epsilon"], alpha=used["score_alpha"],
                       seed=used["seed"], epoch=used["epochs"], clip_start=used["clip_start"],
                       batch_size=args.batch_size, bar=bar)
    labels = dataset.labels if args.class_balanced else None
    kept = select(scores, args.prune, args.p, used["seed"], labels)
    seconds = time.perf_counter() - start
    folder = runs.create(out, None)
    save(folder / "scores.npz", scores, dataset.labels, kept)
    draw(folder / "pruned.png", dataset, scores, kept,
         f"{args.run}: {args.score}, {args.prune}, p = {args.p:g}")
    print(f"{len(scores):,} examples scored in {seconds:.1f} s, {len(kept):,} kept: {folder}")
    return {"source": args.run, "score": args.score, "prune": args.prune, "p": args.p,
            "n": len(scores), "n_kept": len(kept), "scores_file": str(folder / "scores.npz"),
            "seconds": seconds}


if __name__ == "__main__":
    main()
