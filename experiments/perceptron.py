"""PUMA's perceptron: when do hard examples help, and what do adapted budgets repair?

    python -m experiments perceptron
    python -m experiments perceptron --seed 1 --out runs/perceptron-1

PUMA's abstract (Maroto & Frossard 2024) speaks of a perceptron learning task. Its set-up was not
available, so this is OUR construction. A teacher u labels x ~ N(0, I_D) with y = sign(u.x). Some
labels are flipped. Half of the data is dropped, at random or by margin. A student trains against
l2 perturbations with one of three budgets: none, the same eps for all examples, or for each
min(eps, margin).

Writes a new folder (runs/perceptron or --out) with perceptron.json and perceptron.png.
"""
import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, ndtr
from threadpoolctl import threadpool_limits

from advprune import console, files
from advprune.run import environment, new_folder
from experiments import figures

D, EPSILON, KEEP, REPEATS = 40, 0.5, 0.5, 8
ALPHAS = (2, 4, 8, 16, 32, 64, 128)  # examples per dimension, before pruning
FLIPPED = (0.0, 0.02, 0.1)


def train_logistic(yx, eps):
    """The w [D] of least mean logistic loss at the worst case, y w.x - eps_i |w|_2.

    yx [n, D] is y times x; eps is a float or [n], the radius of the l2 ball. A ridge of 1e-4
    bounds w where the data can be separated.
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
    """The accuracy P(y w.(x + delta) > 0), y = sign(u.x), under the worst delta of l2 norm eps.

    It is twice the integral from eps of phi(t) Phi(rho t / sqrt(1 - rho^2)), where rho is the
    cosine of w and u. At eps = 0 this equals 1 - arccos(rho) / pi.
    """
    rho = np.clip(w @ u / (np.linalg.norm(w) * np.linalg.norm(u)), -1, 1)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    t = eps + (nodes + 1) * 5  # to eps + 10; the density beyond is negligible
    density = np.exp(-t * t / 2) / np.sqrt(2 * np.pi)
    return float(2 * 5 * weights @ (density * ndtr(rho * t / np.sqrt(max(1 - rho**2, 1e-14)))))


def one_draw(flipped, alpha, rng):
    """(clean, robust) accuracy for each (subset, budget), trained on one draw of alpha D examples.

    The margin of an example is max(y u.x, 0): an ideal margin model's, 0 if the label is wrong.
    """
    u, x = np.eye(D)[0], rng.standard_normal((alpha * D, D))
    y = np.sign(x @ u) * np.where(rng.random(len(x)) < flipped, -1, 1)
    margin, kept = np.maximum(y * (x @ u), 0), round(KEEP * len(x))
    ranked = np.argsort(margin, kind="stable")
    subsets = {"all": ranked, "random": rng.permutation(len(x))[:kept],
               "easy": ranked[-kept:], "hard": ranked[:kept]}
    results = {}
    for subset, ids in subsets.items():
        budgets = {"none": 0, "eps": EPSILON, "adapted": np.minimum(EPSILON, margin[ids])}
        for budget, eps in budgets.items():
            w = train_logistic((x * y[:, None])[ids], eps)
            results[subset, budget] = agreement(w, u), agreement(w, u, EPSILON)
    return results


def study(seed):
    """Mean accuracies over REPEATS draws, and where the hard half serves as well as a random half.

    A row is one share of flipped labels, amount of data, subset and kind of budget.
    """
    rows = []
    for flipped in FLIPPED:
        for alpha in ALPHAS:
            draws = [one_draw(flipped, alpha, np.random.default_rng([seed, repeat, alpha]))
                     for repeat in range(REPEATS)]
            for subset, budget in draws[0]:
                pairs = [draw[subset, budget] for draw in draws]
                clean, robust = np.mean(pairs, 0).tolist()
                errors = (np.std(pairs, 0, ddof=1) / REPEATS**0.5).tolist()
                rows.append({"flipped": flipped, "alpha": alpha, "subset": subset,
                             "budget": budget, "clean_accuracy": clean, "clean_stderr": errors[0],
                             "robust_accuracy": robust, "robust_stderr": errors[1]})
    value = {(r["flipped"], r["alpha"], r["subset"], r["budget"]): r["clean_accuracy"]
             for r in rows}
    pays = {f"{budget}, flipped {flipped}": [
        alpha for alpha in ALPHAS
        if value[flipped, alpha, "hard", budget] >= value[flipped, alpha, "random", budget]]
        for flipped in FLIPPED for budget in ("none", "eps", "adapted")}
    return {"d": D, "eps": EPSILON, "keep": KEEP, "repeats": REPEATS, "seed": seed,
            "highest_robust": float(2 * ndtr(-EPSILON)), "rows": rows, "hard_pays_at_alpha": pays}


def report(record):
    print("Clean accuracy of the perceptron, mean of {repeats} draws: d = {d}, l2 budget {eps}, "
          "{keep:.0%} of the data kept\n".format(**record))
    print("flipped  budget   subset  " + "".join(f"{alpha:>7}" for alpha in ALPHAS)
          + "  examples per dimension")
    for first in (row for row in record["rows"] if row["alpha"] == ALPHAS[0]):
        same = [row for row in record["rows"] if all(
            row[name] == first[name] for name in ("flipped", "budget", "subset"))]
        print("{flipped:7}  {budget:7}  {subset:6}  ".format(**first)
              + "".join(f"{row['clean_accuracy']:7.3f}" for row in same))
    print("\nExamples per dimension where the hard half gives at least the clean accuracy of a "
          "random half:")
    for case, alphas in record["hard_pays_at_alpha"].items():
        print(f"budget {case}: {', '.join(map(str, alphas)) or 'none'}")


def main(argv=None):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("--seed", type=console.seed, default=0, help="of the draws (0)")
    flag("--out", metavar="DIR", help="the new folder (runs/perceptron)")
    args = parser.parse_args(argv)
    if args.out:
        files.check_new(args.out)
    with threadpool_limits(1):  # these products are too small to gain from threads
        record = study(args.seed)
    report(record)
    folder = new_folder(args.out or "runs/perceptron")
    record["folder"] = str(folder)
    files.write_figure(folder / "perceptron.png", figures.perceptron(record))
    files.write_json(folder / "perceptron.json", {
        "command": console.command("-m", ["experiments", "perceptron", *(argv or ())]), **record,
        **environment(torch.device("cpu"))})
    print(f"\nrecord and picture: {folder}")
    return record
