"""The geometry of a data set: density, separation and a t-SNE map of its classes (appendix A.1).

    python -m experiments geometry mnist fashion-mnist cifar10
    python -m experiments geometry mnist cifar10 --pruned runs/NAME/scores.npz

Prints our values beside Table 2 of Kaufmann et al. 2022. Writes a new folder (runs/geometry or
--out) with geometry.json and tsne.png. The picture is their Figure 8: t-SNE of the first 50
principal components of a random subset. --pruned FILE adds a row for the examples that a score
file of train.py or prune.py keeps.

The paper's formulas can be read in several ways, and the paper does not say in which space they
apply. Ours: pixels are scaled to mean 0 and standard deviation 1. The 1 % of each class D_m
farthest from its centroid c_m is left out. Then
    rho    mean over classes of |D_m| / mean |x - c_m|
    delta  sum over classes of |c_m - c'|^2 / pixels, c' the nearest other centroid
--readings tries others: pixels, principal components and t-SNE maps, in several units, with
several formulas. It takes minutes, and the record gets those that come nearest to Table 2.
"""
import time
from typing import NamedTuple

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from advprune import console, data, files
from advprune.config import RECIPES
from advprune.errors import UserError
from advprune.run import environment, new_folder, read_scores
from experiments import figures

TABLE_2 = {"mnist": (1015.55, 0.7698), "pruned mnist": (222.34, 1.4860),
           "cifar10": (96.6625, 0.3571)}
SHOWN = 5  # readings in the record


class Classes(NamedTuple):
    """The classes of a set of points, each without those that are farthest from its centroid."""

    counts: np.ndarray  # [M], of those left
    radii: np.ndarray  # [M], mean distance to the centroid
    squares: np.ndarray  # [M], mean squared distance to the centroid
    centroids: np.ndarray  # [M, k]

    def nearest(self):
        """The squared distance of each centroid to the nearest other [M]."""
        between = ((self.centroids[:, None] - self.centroids[None]) ** 2).sum(-1)  # [M, M]
        np.fill_diagonal(between, np.inf)
        return between.min(1)


def classes_of(points, labels, cut=0.01, unit=lambda members: members):
    """The Classes of points [N, k] with labels [N].

    `unit` is applied to the points of each class, which needs no copy of them all.
    A fraction `cut` of each class, the farthest from its centroid, is left out. Raises ValueError
    for fewer than two classes.
    """
    found = []
    for label in np.unique(labels):
        members = unit(points[labels == label]).astype(np.float32)
        distance = np.linalg.norm(members - members.mean(0), axis=1)
        left = len(members) - int(cut * len(members))
        kept = members[np.argsort(distance, kind="stable")[:left]]
        centroid = kept.mean(0)
        distance = np.linalg.norm(kept - centroid, axis=1)
        found.append((len(kept), distance.mean(), (distance ** 2).mean(), centroid))
    if len(found) < 2:
        raise ValueError("separation needs two classes")
    return Classes(*map(np.array, zip(*found, strict=True)))


def density_and_separation(images, labels, cut=0.01):
    """(rho, delta) of images [N, C, H, W] uint8 with labels [N]. The file's head defines both.

    Raises ValueError for fewer than two classes.
    """
    pixels = images.flatten(1).numpy()
    mean, scale = pixels.mean(), pixels.std()
    found = classes_of(pixels, labels.numpy(), cut, lambda members: (members - mean) / scale)
    return (float((found.counts / found.radii).mean()),
            float((found.nearest() / pixels.shape[1]).sum()))


def tsne_map(images, n, seed, perplexity=30):
    """The ids [n] of a random subset, and its t-SNE points [n, 2] from 50 principal components."""
    ids = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(images))[:n]))
    pixels = images[ids].flatten(1).numpy().astype(np.float32) / 255
    pca = PCA(min(50, *pixels.shape), svd_solver="randomized", random_state=seed)
    tsne = TSNE(init="pca", random_state=seed, perplexity=min(perplexity, len(ids) / 4))
    return ids, tsne.fit_transform(pca.fit_transform(pixels))


# --- other readings of the formulas

UNITS = {  # of points [N, k]: what they are measured in
    "as they are": lambda points: points,
    "deviation 1": lambda points: (points - points.mean()) / points.std(),
    "deviation 1 in each coordinate": lambda points: (
        (points - points.mean(0)) / np.maximum(points.std(0), 1e-6)),
    "0 to 1": lambda points: (points - points.min()) / np.ptp(points),
    "0 to 1 in each coordinate": lambda points: (
        (points - points.min(0)) / np.maximum(np.ptp(points, axis=0), 1e-6))}
RHO = {  # r: distance to the centroid
    "mean of n / mean r": lambda of: (of.counts / of.radii).mean(),
    "mean of n / mean r^2": lambda of: (of.counts / of.squares).mean(),
    "mean of 1 / mean r": lambda of: (1 / of.radii).mean(),
    "mean of 1 / mean r^2": lambda of: (1 / of.squares).mean(),
    "n / mean r, summed": lambda of: (of.counts / of.radii).sum(),
    "norm of the mean centroid": lambda of: np.linalg.norm(of.centroids.mean(0)),
    "sum of the mean centroid": lambda of: abs(of.centroids.mean(0).sum())}
DELTA = {  # d: distance to the nearest other centroid
    "sum of d^2": lambda of: of.nearest().sum(),
    "mean of d^2": lambda of: of.nearest().mean(),
    "sum of d": lambda of: np.sqrt(of.nearest()).sum(),
    "mean of d": lambda of: np.sqrt(of.nearest()).mean(),
    "sum of d^2 / coordinates": lambda of: of.nearest().sum() / of.centroids.shape[1],
    "mean of d^2 / coordinates": lambda of: of.nearest().mean() / of.centroids.shape[1]}


def spaces(images, labels, seed):
    """(name, points [N, k], labels [N]) of each space in which the formulas may be meant."""
    pixels = images.flatten(1).numpy().astype(np.float32) / 255
    yield "pixels", pixels, labels.numpy()
    pca = PCA(min(50, *pixels.shape), svd_solver="randomized", random_state=seed)
    yield "50 components", pca.fit_transform(pixels), labels.numpy()
    for n in (1000, 5000):
        for perplexity in (10, 30, 50):
            ids, points = tsne_map(images, n, seed, perplexity)
            yield f"t-SNE of {n:,}, perplexity {perplexity}", points, labels[ids].numpy()


def readings(sets, seed):
    """Readings and their values on sets: [(name, images, labels)], the nearest to Table 2 first.

    {"rho": rows, "delta": rows}; `factor` is how far the worst of the values is from the paper's.
    """
    values = {"rho": {}, "delta": {}}  # (space, unit, formula) -> the value of each set
    for _, images, labels in sets:
        for space, points, ids in spaces(images, labels, seed):
            for unit, scaled in UNITS.items():
                found = classes_of(scaled(points), ids)
                for name, formulas in (("rho", RHO), ("delta", DELTA)):
                    for formula, value in formulas.items():
                        values[name].setdefault((space, unit, formula), []).append(
                            float(value(found)))
    made = {}
    for i, (name, tried) in enumerate(values.items()):
        paper = np.array([TABLE_2[name][i] for name, _, _ in sets])
        made[name] = sorted(({
            "space": space, "unit": unit, "formula": formula, "values": got,
            "factor": float(np.exp(np.abs(np.log(np.maximum(got, 1e-30) / paper)).max()))}
            for (space, unit, formula), got in tried.items()), key=lambda row: row["factor"])
    return made


# --- the script

def kept_of(path, datasets):
    """(data set, kept ids) of a score file. Its labels tell which data set it belongs to."""
    for dataset in datasets:
        try:
            read_scores(path, dataset.labels)
        except UserError as error:
            reason = error
            continue
        with np.load(path) as file:
            kept = file["kept"] if "kept" in file else np.empty(0)
        n = len(dataset.labels)
        if kept.dtype != np.int64 or not len(kept) or not 0 <= kept.min() <= kept.max() < n:
            raise UserError(f"{path} does not say which of the {n} examples are kept")
        return dataset, torch.from_numpy(kept)
    raise reason


def check(name, labels):
    """Raise UserError if density or separation is undefined."""
    if min(counts := torch.bincount(labels)[labels.unique()]) < 2 or len(counts) < 2:
        raise UserError(f"{name} needs two classes or more, and two examples in each")


def main(argv=None):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("dataset", nargs="+", choices=list(RECIPES), help="data sets to describe")
    flag("--pruned", metavar="FILE", action="append", default=[],
         help="a scores.npz: also describe the examples it keeps; may repeat")
    flag("--n", type=console.number(int, 100), default=2000, help="examples in the picture (2000)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    flag("--seed", type=console.number(int, 0, 2**32 - 1), default=0,
         help="of the subset and of t-SNE (0)")
    flag("--readings", action="store_true", help="try other readings of the formulas")
    flag("--out", metavar="DIR", help="the new folder (runs/geometry)")
    args = parser.parse_args(argv)
    if args.out:
        files.check_new(args.out)
    datasets = [data.load(name, args.data_dir) for name in dict.fromkeys(args.dataset)]
    jobs = [(d.name, d, torch.arange(len(d.labels))) for d in datasets]
    for path in args.pruned:
        dataset, kept = kept_of(path, datasets)
        jobs.append((f"pruned {dataset.name}", dataset, kept))
    for name, dataset, ids in jobs:
        check(name, dataset.labels[ids])
    first = {name: (name, dataset.images[ids], dataset.labels[ids])
             for name, dataset, ids in reversed(jobs)}
    known = [first[name] for name in TABLE_2 if name in first]
    if args.readings and not known:
        raise UserError(f"--readings needs a data set of Table 2: {', '.join(TABLE_2)}")

    print("                                 ours              Table 2\n"
          "data set             examples    rho      delta    rho      delta")
    rows, maps = [], []
    for name, dataset, ids in jobs:
        start = time.perf_counter()
        images, labels = dataset.images[ids], dataset.labels[ids]
        rho, delta = density_and_separation(images, labels)
        shown, points = tsne_map(images, args.n, args.seed)
        rows.append({"name": name, "examples": len(ids), "n": len(shown), "rho": rho,
                     "delta": delta, "paper": TABLE_2.get(name),
                     "seconds": time.perf_counter() - start})
        if name not in (row["name"] for row in rows[:-1]):  # one picture of each name
            maps.append((rows[-1], labels[shown].numpy(), points, dataset.classes))
        paper = "{:<8.2f} {:.4f}".format(*TABLE_2[name]) if name in TABLE_2 else "-        -"
        print(f"{name:20} {len(ids):8,}    {rho:<8.2f} {delta:<8.4f} {paper}", flush=True)
    folder = new_folder(args.out or "runs/geometry")
    files.write_figure(folder / "tsne.png", figures.maps(maps))
    record = {"rows": rows, "seed": args.seed, "folder": str(folder)}
    if args.readings:
        found = readings(known, args.seed)
        record["readings"] = {"sets": [name for name, _, _ in known], "tried": {
            name: len(tried) for name, tried in found.items()}, **{
            name: tried[:SHOWN] for name, tried in found.items()}}
    files.write_json(folder / "geometry.json", {
        "command": console.command("-m", ["experiments", "geometry", *(argv or ())]), **record,
        **environment(torch.device("cpu"))})
    return record
