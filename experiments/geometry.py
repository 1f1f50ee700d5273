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
"""
import time

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from advprune import console, data, files
from advprune.config import RECIPES
from advprune.errors import UserError
from advprune.run import environment, new_folder, read_scores
from experiments import figures

TABLE_2 = {"mnist": (1015.55, 0.7698), "pruned mnist": (222.34, 1.4860),
           "cifar10": (96.6625, 0.3571)}


def density_and_separation(images, labels, cut=0.01):
    """(rho, delta) of images [N, C, H, W] uint8 with labels [N]. The file's head defines both.

    Raises ValueError for fewer than two classes.
    """
    pixels, labels = images.flatten(1).numpy(), labels.numpy()
    mean, scale = pixels.mean(), pixels.std()
    densities, centroids = [], []
    for label in np.unique(labels):  # class by class, so that there is no copy of all in floats
        members = ((pixels[labels == label] - mean) / scale).astype(np.float32)
        distance = np.linalg.norm(members - members.mean(0), axis=1)
        left = len(members) - int(cut * len(members))
        kept = members[np.argsort(distance, kind="stable")[:left]]
        centroids.append(kept.mean(0))
        densities.append(left / np.linalg.norm(kept - centroids[-1], axis=1).mean())
    if len(centroids) < 2:
        raise ValueError("separation needs two classes")
    between = cdist(centroids, centroids, "sqeuclidean")
    np.fill_diagonal(between, np.inf)
    return float(np.mean(densities)), float((between.min(1) / pixels.shape[1]).sum())


def tsne_map(images, n, seed):
    """The ids [n] of a random subset, and its t-SNE points [n, 2] from 50 principal components."""
    ids = torch.from_numpy(np.sort(np.random.default_rng(seed).permutation(len(images))[:n]))
    pixels = images[ids].flatten(1).numpy().astype(np.float32) / 255
    pca = PCA(min(50, *pixels.shape), svd_solver="randomized", random_state=seed)
    tsne = TSNE(init="pca", random_state=seed, perplexity=min(30, len(ids) / 4))
    return ids, tsne.fit_transform(pca.fit_transform(pixels))


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
    files.write_json(folder / "geometry.json", {
        "command": console.command("-m", ["experiments", "geometry", *(argv or ())]), **record,
        **environment(torch.device("cpu"))})
    return record
