"""Every default of train.py, evaluate.py and prune.py, in one table.

RECIPES has a recipe for each data set. train.py's flags change its values, and a run's config.json
records what was used. Those of MNIST and CIFAR-10 are fast_adversarial's (Wong et al. 2020).
"""
from typing import Any

Recipe = dict[str, Any]

# peak: the fraction of the run at which the learning rate is highest. clip_start: whether the
# random start stays in the image box. alphas: the step of each attack, in units of epsilon, so
# that it follows --epsilon. pad, flip: the augmentation. eval_alpha: the step of PGD-50-10, also
# in units of epsilon.
MNIST: Recipe = dict(
    epsilon=0.3, alphas={"rs-fgsm": 1.25, "n-fgsm": 1.0, "pgd": 1 / 30}, clip_start=False,
    pgd_steps=40, eval_alpha=1 / 30, epochs=10, batch_size=100, optimizer="adam", lr=5e-3,
    peak=0.4, momentum=0.9, weight_decay=0.0, pad=0, flip=False)
CIFAR10: Recipe = dict(
    epsilon=8 / 255, alphas={"rs-fgsm": 1.25, "n-fgsm": 1.0, "pgd": 1 / 4}, clip_start=True,
    pgd_steps=10, eval_alpha=1 / 4, epochs=15, batch_size=128, optimizer="sgd", lr=0.2,
    peak=0.5, momentum=0.9, weight_decay=5e-4, pad=4, flip=True)
RECIPES: dict[str, Recipe] = {
    # At 0.13 a network trained without attacks loses nearly all its robust accuracy on the digits.
    "digits": {**MNIST, "epsilon": 0.13, "epochs": 30, "batch_size": 32, "peak": 0.1, "pad": 1},
    "mnist": MNIST,
    "fashion-mnist": {**MNIST, "epsilon": 0.1},
    "cifar10": CIFAR10,
    # CIFAR-10's for twice as many epochs: sets of 64x64 images such as Tiny ImageNet have a tenth
    # of the images of each class and many more classes. ImageNet's usual epsilon. The crop moves
    # by an eighth of the side, as CIFAR-10's does.
    "folder": {**CIFAR10, "epsilon": 4 / 255, "epochs": 30, "image_size": 64, "pad": None},
    "synthetic": {**MNIST, "epsilon": 0.1, "epochs": 5, "batch_size": 32, "peak": 0.2},
}

# --recipe robust: what to train with so that training does not collapse (docs/training.md has the
# measurements). Two steps of PGD cost more than one of RS+FGSM, so MNIST gets fewer epochs. On
# colour images N-FGSM costs what RS+FGSM costs.
PGD_2: Recipe = dict(attack="pgd", pgd_steps=2, alphas={"pgd": 2 / 3})
N_FGSM: Recipe = dict(attack="n-fgsm")
ROBUST: dict[str, Recipe] = {
    "digits": PGD_2, "mnist": {**PGD_2, "epochs": 8}, "fashion-mnist": PGD_2,
    "cifar10": N_FGSM, "folder": N_FGSM, "synthetic": PGD_2}


def of(dataset: str, recipe: str) -> dict:
    """The values of a data set under --recipe paper or robust."""
    paper = {"attack": "rs-fgsm", **RECIPES[dataset]}
    if recipe == "paper":
        return paper
    robust = ROBUST[dataset]
    return {**paper, **robust, "alphas": {**paper["alphas"], **robust.get("alphas", {})}}


def remedy(dataset: str, epsilon: float) -> dict:
    """The attack that a run continues with after a rollback (guard.py).

    Where --recipe robust has PGD, it has one step more here: a network that was about to collapse
    overfits to two steps too.
    """
    robust = of(dataset, "robust")
    if robust["attack"] == "pgd":
        return {"kind": "pgd", "alpha": epsilon / 2, "steps": 3}
    return {"kind": robust["attack"], "alpha": robust["alphas"][robust["attack"]] * epsilon,
            "steps": robust["pgd_steps"]}


# The same for all data sets; Wang et al. 2023's values for what comes from there.
P, PRUNE_EPOCH = 0.4, 3
MARGIN = dict(margin_norm="linf", margin_steps=50, margin_classes=None)
ADAPT = dict(adapt_fraction=1.0, eps_floor=0.0)
BETA, EXTRA_FRACTION, COSINE_PEAK = 5.0, 0.7, 0.025


def shown(name: str) -> str:
    """One value for all data sets, or each value after its data sets' names, as --help says it."""
    values: dict[str, list[str]] = {}
    for dataset, recipe in RECIPES.items():
        if name in recipe:
            value = recipe[name]
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            values.setdefault(text, []).append(dataset)
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{', '.join(datasets)} {text}" for text, datasets in values.items())
