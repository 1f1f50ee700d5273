"""The toy model of robust features, simulated and in closed form.

    python toy_model.py [--p-R 0.5 --p-robust 0.95 --p-fragile 0.55]

Section 5.2 of Kaufmann et al. 2022. One robust feature x_1 equals the label with probability
p_robust on D_robust and p_fragile on D_fragile. d weak features predict the label well together,
but a small perturbation breaks them. A linear classifier is trained on worst-case examples. Its
data are pruned by squared loss, with train.py's `pruning.select`. Then it is trained again.

Writes a folder (runs/toy-model or --out) with toy_model.json and toy_model.png.
"""
import itertools
from pathlib import Path
from typing import NamedTuple

import advprune.start  # noqa: F401  first, because others may not be installed

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from scipy.special import ndtr
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from advprune import console, files, plots, pruning, run
from advprune.errors import UserError

BUDGETS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3)  # of attacks on the two classifiers, in etas
TRAINED = (0.25, 0.5, 0.75, 1, 2)  # of attacks in training, in etas
DROPPED = (0.2, 0.4, 0.6, 0.8)
STRATEGIES = ("high", "low", "low+high", "random")
OTHERS = ((0.5, 0.95, 0.55), (0.9, 0.99, 0.6))  # more (p_R, p_robust, p_fragile) for verdicts
LEFT = ("toy_model.png", ".*.part")  # by a study that was cut off, in its folder
MATTERS = 0.002  # a smaller change of accuracy counts as no change


class Toy(NamedTuple):
    """The parameters of equations 1 and 2. checked() raises ValueError for invalid ones."""

    d: int = 100
    p_R: float = 0.7
    p_robust: float = 0.95
    p_fragile: float = 0.8
    eta: float | None = None  # 3 / sqrt(d)

    def checked(self):
        """These parameters with eta filled in."""
        if self.d < 1:
            raise ValueError(f"d must be at least 1, not {self.d}")
        if not 0 <= self.p_R <= 1:
            raise ValueError(f"p_R must be a probability in [0, 1], not {self.p_R}")
        if not 0.5 <= self.p_fragile <= self.p_robust <= 1:
            raise ValueError("p_fragile and p_robust must be in [0.5, 1], and p_fragile at most "
                             f"p_robust, not {self.p_fragile} and {self.p_robust}")
        if self.eta is not None and not self.eta > 0:
            raise ValueError(f"eta must be above 0, not {self.eta}")
        return self._replace(eta=3 / self.d**0.5 if self.eta is None else self.eta)

    @property
    def q(self):
        """P(x_1 = y), the robust classifier's accuracy. The paper swaps p_robust and p_fragile."""
        return self.p_R * self.p_robust + (1 - self.p_R) * self.p_fragile


def sample(n, d, p_R, p_robust, p_fragile, eta=None, rng=None):
    """n draws of equations 1 and 2: x [n, d+1] float32, y [n] of -1 and +1, from_robust [n] bool.

    eta defaults to 3 / sqrt(d). Raises ValueError for parameters that Toy refuses.
    """
    eta = Toy(d, p_R, p_robust, p_fragile, eta).checked().eta
    rng = np.random.default_rng(rng)
    from_robust = rng.random(n) < p_R
    y = 2 * rng.integers(2, size=n) - 1
    right = rng.random(n) < np.where(from_robust, p_robust, p_fragile)
    x = rng.standard_normal((n, d + 1), dtype=np.float32)
    x[:, 1:] += (eta * y)[:, None]
    x[:, 0] = np.where(right, y, -y)
    return x, y, from_robust


def accuracy(w, eps, toy):
    """P(y w.(x + delta) > 0) under the worst delta of l-inf norm eps, exactly.

    That delta lowers the margin by eps |w|_1 (equation 4 with its subscripts corrected). Given
    x_1 = y, and given x_1 = -y, the margin is Gaussian.
    """
    margins = w[0] * np.array([1, -1]) + toy.eta * w[1:].sum() - eps * np.abs(w).sum()
    spread = np.linalg.norm(w[1:])
    right = ndtr(margins / spread) if spread > 0 else margins > 0
    return float(np.array([toy.q, 1 - toy.q]) @ right)


def simulate(pairs, n, toy, rng):
    """For each (w, eps) of pairs: how many of n draws are right under the worst delta."""
    weights = np.stack([w for w, _ in pairs], axis=1)  # [d+1, pairs]
    cost = np.array([eps for _, eps in pairs]) * np.abs(weights).sum(0)
    counts, rows = np.zeros(len(pairs), int), max(1, 2**19 // (toy.d + 1))  # bounds memory
    for start in range(0, n, rows):
        x, y, _ = sample(min(rows, n - start), *toy, rng)
        counts += (y[:, None] * (x @ weights) - cost > 0).sum(0)
    return counts


def train_squared(x, y, eps):
    """The w [d+1] of least mean worst-case squared loss, (|1 - y w.x| + eps |w|_1)^2.

    Convex. w is a difference of two non-negative vectors, so that its l1 norm is smooth.
    """
    yx, size = x * y[:, None].astype(np.float32), x.shape[1]

    def loss(halves):
        residual = 1 - (yx @ (halves[:size] - halves[size:]).astype(np.float32)).astype(float)
        length = np.sqrt(residual**2 + 1e-8)  # |residual|, smooth at 0
        worst = length + eps * halves.sum()
        grad = -2 * ((worst * residual / length).astype(np.float32) @ yx) / len(y)
        shift = 2 * eps * worst.mean()
        return (worst**2).mean(), np.concatenate([shift + grad, shift - grad])

    halves = minimize(loss, np.zeros(2 * size), jac=True, method="L-BFGS-B",
                      bounds=[(0, None)] * (2 * size), options=dict(maxiter=500)).x
    w = halves[:size] - halves[size:]
    return np.where(np.abs(w) < 1e-6, 0.0, w)  # below the optimiser's tolerance


def robust_share(w, how, p, toy):
    """The share of D_robust in the kept data when a fraction p is dropped by squared loss.

    Given x_1 = y, and given x_1 = -y, |1 - y w.x| is a folded Gaussian and does not depend on the
    part of the mixture. So the cuts are quantiles of a mixture of two known distributions.
    """
    if how in ("none", "random"):
        return toy.p_R
    mean = w[0] * np.array([1, -1]) + toy.eta * w[1:].sum()
    spread = max(np.linalg.norm(w[1:]), 1e-6)  # a little noise breaks ties

    def below(u):  # P(|1 - y w.x| <= u), [given x_1 = y, given not]
        return ndtr((1 + u - mean) / spread) - ndtr((1 - u - mean) / spread)

    mass = np.array([toy.q, 1 - toy.q])
    low, high = {"high": (0, p), "low": (p, 0), "low+high": (p / 2, p / 2)}[how]
    top = 2 + np.abs(mean).max() + 40 * spread
    cuts = [below(0) if cut == 0 else below(top) if cut == 1 else
            below(brentq(lambda u, cut=cut: mass @ below(u) - cut, 0, top, xtol=1e-13))
            for cut in (low, 1 - high)]
    from_robust = toy.p_R * np.array([toy.p_robust, 1 - toy.p_robust])
    return float((cuts[1] - cuts[0]) @ from_robust / ((cuts[1] - cuts[0]) @ mass))


def keep(x, y, w, how, p, seed):
    """The ids kept when a fraction p of (x, y) is dropped by the squared loss of w."""
    loss = torch.from_numpy((x @ w.astype(np.float32) - y) ** 2).float()
    return pruning.select(loss, how, p, seed).numpy()


def claims(toy, n, rng):
    """Section 5.2's two classifiers over a range of budgets, simulated and in closed form."""
    classifiers = {"fragile": np.r_[0, np.full(toy.d, 1 / toy.d)],
                   "robust": np.r_[1, np.zeros(toy.d)]}
    tried = [(name, k * toy.eta) for name in classifiers for k in BUDGETS]
    counts = simulate([(classifiers[name], eps) for name, eps in tried], n, toy, rng)
    return [{"classifier": name, "eps": eps, "simulated": count / n,
             "interval": list(binomtest(count, n).proportion_ci(method="wilson")),
             "closed_form": accuracy(classifiers[name], eps, toy)}
            for (name, eps), count in zip(tried, counts.tolist(), strict=True)]


def prune_and_retrain(toy, n, seed, rng):
    """Train on n / 5 draws against each budget, prune by loss, train again: a row for each."""
    x, y, from_robust = sample(n // 5, *toy, rng)
    rows, pairs = [], []
    for k in TRAINED:
        first = train_squared(x, y, k * toy.eta)
        for how, p in [("none", 0.0), *((how, p) for how in STRATEGIES for p in DROPPED)]:
            kept = keep(x, y, first, how, p, seed)
            w = first if how == "none" else train_squared(x[kept], y[kept], k * toy.eta)
            pairs += [(w, 0.0), (w, k * toy.eta)]
            rows.append({
                "eps": k * toy.eta, "prune": how, "p": p, "n_kept": len(kept),
                "robust_share": float(from_robust[kept].mean()),
                "robust_share_closed_form": robust_share(first, how, p, toy)})
    counts = simulate(pairs, n, toy, rng)
    for row, (w, eps), standard, robust in zip(rows, pairs[1::2], *counts.reshape(-1, 2).T / n,
                                               strict=True):
        row.update(standard=float(standard), standard_closed_form=accuracy(w, 0, toy),
                   robust=float(robust), robust_closed_form=accuracy(w, eps, toy))
    return rows


def verdicts(toy, n, seed, rng, repeats=3):
    """The effect of dropping high or low losses, and whether the paper's statements hold, by row.

    A row is one mixture, budget and p. An effect is the change of (standard, robust) accuracy from
    random pruning at equal p. Accuracies are exact for each w, and means over `repeats` draws.
    """
    rows = []
    for chances in ((toy.p_R, toy.p_robust, toy.p_fragile), *OTHERS):
        toy = toy._replace(p_R=chances[0], p_robust=chances[1], p_fragile=chances[2])
        for k, p in itertools.product(TRAINED, (0.4, 0.8)):
            scores = {how: np.zeros(2) for how in ("random", "high", "low")}
            for _ in range(repeats):
                x, y, _ = sample(n // 5, *toy, rng)
                first = train_squared(x, y, k * toy.eta)
                for how in scores:
                    kept = keep(x, y, first, how, p, seed)
                    w = train_squared(x[kept], y[kept], k * toy.eta)
                    scores[how] += [accuracy(w, eps, toy) / repeats for eps in (0, k * toy.eta)]
            high, low = scores["high"] - scores["random"], scores["low"] - scores["random"]
            rows.append({
                **dict(zip(("p_R", "p_robust", "p_fragile"), chances, strict=True)),
                "eps": k * toy.eta, "p": p, "high": high.tolist(), "low": low.tolist(),
                "high_costs_standard_more": bool(high[0] < min(high[1], 0) - MATTERS),
                "low_hurts_both": bool(max(low) < -MATTERS)})
    return rows


def study(toy, n, seed):
    rng = np.random.default_rng(seed)
    rows = claims(toy, n, rng)
    swapped = toy.p_R * toy.p_fragile + (1 - toy.p_R) * toy.p_robust
    low, high = rows[len(BUDGETS)]["interval"]  # of the robust classifier without attack
    return {
        **toy._asdict(), "n": n, "seed": seed, "accuracy": rows,
        "fragile_above_99_percent": rows[0]["simulated"] > 0.99,
        "fragile_below_1_percent_from_2_eta": all(
            row["simulated"] < 0.01 for row in rows
            if row["classifier"] == "fragile" and row["eps"] >= 2 * toy.eta),
        "robust_accuracy": toy.q, "as_printed": swapped,
        "simulation_rejects_as_printed": not low <= swapped <= high,
        "retrained": prune_and_retrain(toy, n, seed, rng), "verdicts": verdicts(toy, n, seed, rng)}


def report(record):
    print("{n:,} draws, d = {d}, p_R = {p_R}, p_robust = {p_robust}, p_fragile = {p_fragile}, "
          "eta = {eta:.4g}".format(**record))
    print("\nclassifier  eps/eta  simulated  95 % interval     closed form")
    for row in record["accuracy"]:
        print(f"{row['classifier']:10}  {row['eps'] / record['eta']:7.2f}  {row['simulated']:9.5f}"
              "  {:.5f}, {:.5f}  {:11.5f}".format(*row["interval"], row["closed_form"]))
    rejects = "rejects" if record["simulation_rejects_as_printed"] else "does not reject"
    print("\nfragile above 0.99 without attack: {fragile_above_99_percent}; below 0.01 from 2 eta:"
          " {fragile_below_1_percent_from_2_eta}\nrobust: p_R p_robust + (1 - p_R) p_fragile = "
          "{robust_accuracy:.4f}. The paper prints the two p swapped: {as_printed:.4f}.\n"
          "The simulation {rejects} that value.".format(**record, rejects=rejects))
    print("\nTrained, pruned by loss, trained again: simulated, and exact in brackets. w = 0 has "
          "accuracy 0.\neps/eta  prune       p  share of D_robust standard         robust")
    for row in record["retrained"]:
        cells = "".join(f"  {row[name]:.4f} ({row[name + '_closed_form']:.4f})"
                        for name in ("robust_share", "standard", "robust"))
        print(f"{row['eps'] / record['eta']:7.2f}  {row['prune']:8}  {row['p']:.1f}{cells}")
    rows = record["verdicts"]
    print("\nChange of standard and robust accuracy against random pruning at equal p"
          "\n p_R  p_robust  p_fragile  eps/eta    p  high dropped    low dropped")
    for row in rows:
        print("{p_R:4.2f}  {p_robust:8.2f}  {p_fragile:9.2f}".format(**row),
              f" {row['eps'] / record['eta']:7.2f}  {row['p']:.1f} ",
              "  ".join("{:+.3f}, {:+.3f}".format(*row[how]) for how in ("high", "low")))
    for verdict, says in (
            ("high_costs_standard_more", "Dropping high losses costs more standard than robust"),
            ("low_hurts_both", "Dropping low losses lowers standard and robust")):
        count = sum(row[verdict] for row in rows)
        print(f"{says} accuracy in {count} of {len(rows)} settings.")


def main(argv=None):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("--n", type=console.number(int, 100), default=100_000,
         help="draws to simulate; a fifth of them for training (100000)")
    flag("--d", type=int, help="number of weak features (100)")
    flag("--p-R", type=console.number(float), help="share of D_robust (0.7)")
    flag("--p-robust", type=console.number(float), help="P(x_1 = y) in D_robust (0.95)")
    flag("--p-fragile", type=console.number(float), help="P(x_1 = y) in D_fragile (0.8)")
    flag("--eta", type=console.number(float), help="mean of the weak features (3 / sqrt(d))")
    flag("--seed", type=console.seed, default=0, help="of the draws (0)")
    flag("--out", metavar="DIR", default="runs/toy-model", help="the folder (runs/toy-model)")
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in Toy._fields if getattr(args, name) is not None}
    try:
        toy = Toy(**given).checked()
    except ValueError as error:
        raise UserError(str(error)) from None
    folder, asked = Path(args.out), {**toy._asdict(), "n": args.n, "seed": args.seed}
    if record := run.finished(folder / "toy_model.json", asked, LEFT):
        report(record)
        return record
    folder.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(1):  # the products are too small to gain from threads
        record = {"command": console.command("toy_model.py", argv),
                  **study(toy, args.n, args.seed), "folder": str(folder),
                  **run.environment(torch.device("cpu"))}
    report(record)
    files.write_figure(folder / "toy_model.png", plots.toy(record))
    files.write_json(folder / "toy_model.json", record)
    print(f"\nrecord and picture: {folder}")
    return record


if __name__ == "__main__":
    console.run(main)
