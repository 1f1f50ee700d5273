"""PUMA's perceptron: when does keeping hard examples pay, and what do budgets of their own repair?

`python toy_model.py perceptron` runs it. PUMA's abstract (Maroto & Frossard 2024) speaks of a
perceptron task whose set-up could not be read, so this is OUR construction: a teacher u and
x ~ N(0, I_D), y = sign(u.x), a share of the labels flipped; half of the data dropped by margin;
a student trained against l2 perturbations: none, of a budget, of min(budget, margin) each.
"""
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, ndtr

D, EPSILON, KEEP, REPEATS = 40, 0.5, 0.5, 8
ALPHAS = (2, 4, 8, 16, 32, 64, 128)  # examples per dimension, before pruning
FLIPPED = (0.0, 0.02, 0.1)
SUBSETS = ("all", "random", "easy", "hard")


def train_logistic(yx, eps):
    """The w [D] of least mean logistic loss at the worst case, y w.x - eps_i |w|_2.

    yx [n, D]; eps a float or [n], of the l2 ball. A ridge of 1e-4 bounds w where the data can be
    separated.
    """
    eps = np.broadcast_to(eps, len(yx))

    def loss(w):
        norm = np.linalg.norm(w) + 1e-12
        margin = yx @ w - eps * norm
        slope = -expit(-margin)
        grad = (slope @ yx - (slope @ eps) * w / norm) / len(yx) + 2e-4 * w
        return np.logaddexp(0, -margin).mean() + 1e-4 * w @ w, grad

    return minimize(loss, yx.mean(0), jac=True, method="L-BFGS-B").x


def agreement(w, u, eps=0.0):
    """P(y w.(x + delta) > 0) with y = sign(u.x) under the worst delta of l2 norm eps.

    Twice the integral from eps of phi(t) Phi(rho t / sqrt(1 - rho^2)), rho the cosine of w and u;
    at eps = 0 it is 1 - arccos(rho) / pi.
    """
    rho = np.clip(w @ u / (np.linalg.norm(w) * np.linalg.norm(u)), -1, 1)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = eps + (nodes + 1) * 5  # to eps + 10, beyond which nothing is left
    density = np.exp(-t * t / 2) / np.sqrt(2 * np.pi)
    return float(2 * 5 * weights @ (density * ndtr(rho * t / np.sqrt(max(1 - rho**2, 1e-14)))))


def study(seed):
    """A row for each share flipped, amount of data, subset and kind of budget: mean accuracies.

    The margin of an example is y u.x, 0 where its label is wrong: that of an ideal margin model.
    """
    u, rows = np.eye(D)[0], []
    for flipped in FLIPPED:
        for alpha in ALPHAS:
            results = {}
            for repeat in range(REPEATS):
                rng = np.random.default_rng([seed, repeat, alpha])
                x = rng.standard_normal((alpha * D, D))
                y = np.sign(x @ u) * np.where(rng.random(len(x)) < flipped, -1, 1)
                margin, kept = np.maximum(y * (x @ u), 0), round(KEEP * len(x))
                ranked = np.argsort(margin, kind="stable")
                subsets = (ranked, rng.permutation(len(x))[:kept], ranked[-kept:], ranked[:kept])
                for subset, ids in zip(SUBSETS, subsets, strict=True):
                    adapted = np.minimum(EPSILON, margin[ids])
                    for budget, eps in (("none", 0), ("eps", EPSILON), ("adapted", adapted)):
                        w = train_logistic((x * y[:, None])[ids], eps)
                        results.setdefault((subset, budget), []).append(
                            (agreement(w, u), agreement(w, u, EPSILON)))
            for (subset, budget), pairs in results.items():
                mean, error = np.mean(pairs, 0), np.std(pairs, 0, ddof=1) / REPEATS**0.5
                rows.append({"flipped": flipped, "alpha": alpha, "subset": subset,
                             "budget": budget, "standard": mean[0], "standard_error": error[0],
                             "robust": mean[1], "robust_error": error[1]})
    # Where half of the data, the hard half, is worth at least as much as a random half:
    value = {(r["flipped"], r["alpha"], r["subset"], r["budget"]): r["standard"] for r in rows}
    pays = {f"{budget}, flipped {flipped}": [
        alpha for alpha in ALPHAS
        if value[flipped, alpha, "hard", budget] >= value[flipped, alpha, "random", budget]]
        for flipped in FLIPPED for budget in ("none", "eps", "adapted")}
    return {"d": D, "eps": EPSILON, "keep": KEEP, "repeats": REPEATS, "seed": seed,
            "highest_robust": float(2 * ndtr(-EPSILON)), "rows": rows, "hard_pays_at_alpha": pays}


def report(record):
    print("\nperceptron of our construction: d = {d}, l2 budget {eps}, {keep:.0%} kept, standard "
          "accuracy of {repeats} draws".format(**record))
    print("flipped  budget   subset  " + "".join(f"{alpha:>7}" for alpha in ALPHAS)
          + "  examples per dimension")
    for first in (row for row in record["rows"] if row["alpha"] == ALPHAS[0]):
        same = [row for row in record["rows"] if all(
            row[name] == first[name] for name in ("flipped", "budget", "subset"))]
        print("{flipped:7}  {budget:7}  {subset:6}  ".format(**first)
              + "".join(f"{row['standard']:7.3f}" for row in same))
    for case, alphas in record["hard_pays_at_alpha"].items():
        print(f"budget {case}: the hard half is worth a random half at "
              + (f"{', '.join(map(str, alphas))} examples per dimension" if alphas else "no size"))


def draw(record):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 10), layout="constrained")
    grid = figure.subplots(len(FLIPPED), 3, sharex=True, sharey=True)
    titles = {"none": "no budget", "eps": f"budget {EPSILON}", "adapted": "min(budget, margin)"}
    for line, flipped in zip(grid, FLIPPED, strict=True):
        for axes, (budget, title) in zip(line, titles.items(), strict=True):
            for subset in SUBSETS:
                rows = [row for row in record["rows"] if (row["flipped"], row["budget"],
                        row["subset"]) == (flipped, budget, subset)]
                axes.errorbar(ALPHAS, [1 - row["standard"] for row in rows],
                              [row["standard_error"] for row in rows], marker="o", capsize=2,
                              label=subset if subset == "all" else f"{subset} {KEEP:.0%}")
            axes.set(xscale="log", yscale="log", title=f"{title}, {flipped:.0%} mislabelled")
        line[0].set_ylabel("standard error")
    for axes in grid[-1]:
        axes.set_xlabel("examples per dimension before pruning")
    grid[0, 0].legend()
    return figure
