"""Tables of README and docs, in Markdown, from the records in results/."""
from functools import cache
from pathlib import Path
from statistics import mean, median

from advprune.config import RECIPES
from advprune.run import read_record
from experiments import studies


class Records:
    """The records of a folder: records["puma-mnist"] is the content of puma-mnist.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.study = cache(self._study)  # many tables are of the same runs, each a file

    def __getitem__(self, name: str) -> dict:
        return read_record(self.folder / f"{name}.json")

    def __contains__(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def _study(self, experiment: str, setup: str) -> dict:
        """rows, summary, n, source and command of an experiment's runs of this setup."""
        part = next(p for p in studies.EXPERIMENTS[experiment] if p.setup == setup)
        rows = studies.rows(self.folder, part)
        return {"rows": rows, "summary": studies.summary(rows), "n": part.n, "source":
                f"\nFrom `results/{setup}/` (`python -m experiments {experiment} --dataset "
                f"{part.dataset}`).\n"}


def as_table(head: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are right-aligned."""
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(row: dict, name: str) -> str:
    """Mean +- standard deviation over seeds."""
    return f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"


def source(*names: str) -> str:
    return "\nFrom " + ", ".join(f"`results/{name}.json`" for name in names)


# --- what pruning does

ARM_TITLES = {"full": "all data", "undefended": "all data, no attack (`--attack none`)"}


def results(records: Records) -> str:
    record = records.study("digits", "digits")
    examples = {row["arm"]: row["examples"] for row in record["rows"]}
    rows = []
    for arm, row in record["summary"].items():
        how, _, p = arm.partition("-")
        name = (f"all data, `--epochs {p.removesuffix('-epochs')}`" if p.endswith("epochs")
                else ARM_TITLES.get(arm) or f"`--prune {how} --p {p}`")
        rows.append([name, spread(row, "clean_accuracy"), spread(row, "robust_accuracy"),
                     f"{examples[arm] / examples['full']:.0%}"])
    seeds = record["summary"]["full"]["seeds"]
    return as_table(["training", "clean", "AutoAttack", "examples seen"], rows) + (
        f"\nDigits, epsilon 0.13, pruned after epoch 3 of 30. Mean ± standard deviation over "
        f"{seeds} seeds; AutoAttack standard on the first {record['n']} test images."
        f"{record['source']}")


def puma(records: Records) -> str:
    names = {"full": "all data", "random-0.3-from-start": "`--prune random`",
             "margin-0.3": "`--prune high` by margin", "puma-0.3": "`--prune puma`",
             "puma-floor-0.3": "`--prune puma`, `--eps-floor` eps/2",
             "keep-easy-0.3": "`--prune low` by margin"}
    mnist, cifar = (records.study("puma", name) for name in ("mnist-pgd5", "cifar10-width4"))
    rows = [[name, *(spread(record["summary"][arm], accuracy) for record in (mnist, cifar)
                     for accuracy in ("clean_accuracy", "robust_accuracy"))]
            for arm, name in names.items()]
    return as_table(["training, p = 0.3", "MNIST: clean", "AutoAttack", "narrow CIFAR-10: clean",
                   "AutoAttack"], rows) + (
        f"\nMean ± standard deviation over {mnist['summary']['full']['seeds']} seeds; AutoAttack "
        f"standard on the first {mnist['n']} test images.{mnist['source']}"
        f"{cifar['source'].lstrip()}")


def collapse(records: Records) -> str:
    record = records.study("collapse", "mnist-collapse")
    names = {"full": "`--recipe paper`", "robust": "`--recipe robust`",
             "rollback": "`--on-collapse rollback`", "small-step": "`--alpha 0.2`"}
    rows, first = [], None
    for arm, row in record["summary"].items():
        mine = [r for r in record["rows"] if r["arm"] == arm]
        robust = [r["robust_accuracy"] for r in mine]
        seconds = min(r["train_seconds"] for r in mine)
        first = first or seconds
        share = median(r["guard_seconds"] / r["train_seconds"] for r in mine)
        events = [f"{event['epoch']} ({event['lr']:.4f})"
                  for r in mine for event in r["collapses"]]
        rows.append([names[arm], str(len(mine)), spread(row, "robust_accuracy"),
                     f"{min(robust):.3f}", str(sum(value < 0.5 for value in robust)),
                     ", ".join(events), spread(row, "clean_accuracy"), f"{seconds / first:.2f}",
                     f"{share:.1%}"])
    return as_table(["MNIST, all data", "seeds", "PGD-50-10", "least", "below 0.5",
                   "collapsed in epoch (learning rate)", "clean", "time", "guard"], rows) + (
        f"\nMean ± standard deviation over seeds; PGD-50-10 on the first {record['n']:,} test "
        f"images. Time is that of the fastest run, as a ratio to the first row's, on one thread "
        f"of a shared machine. Guard is the median of its share of the training time."
        f"{record['source']}")


# --- what the kernels are worth

def machine_of(record: dict) -> str:
    return (f"{record['device']}, {record['threads']} threads, {record.get('cpu', '')}, torch "
            f"{record['versions']['torch']}")


def kernels(records: Records) -> str:
    record = records["cpu-kernels"]
    rows = [[f"`{row['operator']}`", f"{row['n']:,}",
             ", ".join(f"{name} {row[name]:.1f}" for name in list(row)[5:])]
            for row in record["rows"]
            if row["operator"].split(",")[0] not in ("rs_start", "fgsm_step")]
    return as_table(["operator", "elements", "alternatives, times as long"], rows) + (
        f"\n{machine_of(record)}; medians in one process on a shared machine."
        f"{source('cpu-kernels')} (`{record['command']}`).\n")


# --- the studies

def toy_accuracy(records: Records) -> str:
    record = records["toy-model"]
    rows = [[row["classifier"], f"{row['eps'] / record['eta']:.2f}", f"{row['simulated']:.4f}",
             "{:.4f} to {:.4f}".format(*row["interval"]), f"{row['closed_form']:.4f}"]
            for row in record["accuracy"]]
    return as_table(["classifier", "budget / eta", "simulated", "95 % interval", "closed form"],
                  rows) + (
        f"\n{record['n']:,} draws, d = {record['d']}, p_R = {record['p_R']}, p_robust = "
        f"{record['p_robust']}, p_fragile = {record['p_fragile']}. The paper's printed formula "
        f"gives {record['as_printed']:.3f} for the robust classifier without attack; with the two "
        f"probabilities in place it gives {record['robust_accuracy']:.3f}."
        f"{source('toy-model')} (`{record['command']}`).\n")


def toy_verdicts(records: Records) -> str:
    record = records["toy-model"]
    settings, rows = record["verdicts"], []
    for k in sorted({round(row["eps"] / record["eta"], 6) for row in settings}):
        for p in sorted({row["p"] for row in settings}):
            mine = [row for row in settings
                    if round(row["eps"] / record["eta"], 6) == k and row["p"] == p]
            counts = [sum(row["high_costs_standard_more"] for row in mine),
                      sum(row["low_hurts_both"] for row in mine),
                      sum(min(row["low"]) > 0.002 for row in mine)]
            rows.append([f"{k:g}", f"{p:g}", *(f"{count} of {len(mine)}" for count in counts)])
    totals = [sum(int(row[i].split()[0]) for row in rows) for i in (2, 3, 4)]
    rows.append(["all", "", *(f"{total} of {len(settings)}" for total in totals)])
    return as_table(["budget / eta", "p", "high costs standard accuracy more than robust",
                   "low costs both", "low improves both"], rows) + (
        "\nNumber of mixtures in which the statement holds, against random pruning at equal p; "
        f"changes up to 0.002 count as none.{source('toy-model')} (`{record['command']}`).\n")


def perceptron(records: Records) -> str:
    record = records["perceptron"]
    budgets = {"none": "none", "eps": f"{record['eps']}", "adapted": "min(eps, margin)"}
    alphas = sorted({row["alpha"] for row in record["rows"]})
    shown = [alphas[0], alphas[len(alphas) // 2], alphas[-1]]
    value = {(row["flipped"], row["budget"], row["subset"], row["alpha"]): row["clean_accuracy"]
             for row in record["rows"]}
    rows = [[f"{flipped:.0%}", name, *(f"{1 - value[flipped, budget, subset, alpha]:.3f}"
                                       for alpha in shown for subset in ("random", "hard"))]
            for flipped in sorted({row["flipped"] for row in record["rows"]})
            for budget, name in budgets.items()]
    head = [f"{subset}, {alpha}" for alpha in shown for subset in ("random", "hard")]
    return as_table(["labels flipped", "budget", *head], rows) + (
        f"\nError on clean inputs of a random and of the hard half; the number is examples per "
        f"dimension before pruning; means of {record['repeats']} draws."
        f"{source('perceptron')} (`{record['command']}`).\n")


def table2(records: Records) -> str:
    record, rows = records["geometry"], []
    for name in dict.fromkeys(row["name"] for row in record["rows"]):
        mine = [row for row in record["rows"] if row["name"] == name]
        ours = [f"{mean(row['rho'] for row in mine):.1f}",
                f"{mean(row['delta'] for row in mine):.3f}"]
        paper = mine[0]["paper"]
        rows.append([name if len(mine) == 1 else f"{name} (mean of {len(mine)} seeds)", *ours,
                     *([f"{paper[0]:.2f}", f"{paper[1]:.4f}"] if paper else ["", ""])])
    return as_table(["", "rho", "delta", "Table 2: rho", "delta"], rows) + (
        f"{source('geometry')} (`{record['command']}`).\n")


def readings(records: Records) -> str:
    """The readings of rho and delta that come nearest to Table 2."""
    record = records["geometry"]
    found = record.get("readings")
    if not found:
        return "Not yet measured: `python -m experiments table2`.\n"
    rows = [[name, row["formula"], row["space"], row["unit"],
             *(f"{value:.3g}" for value in row["values"]), f"{row['factor']:.2f}"]
            for name in ("rho", "delta") for row in found[name]]
    tried = found["tried"]
    return as_table(["", "formula", "space", "unit", *found["sets"], "worst factor"], rows,
                  left=4) + (
        f"\nThe nearest of {tried['rho']} readings of rho and {tried['delta']} of delta. The "
        "factor is how far the worst of the values is from Table 2. n: examples of a class; r: "
        "distance to the centroid; d: distance to the nearest other centroid."
        f"{source('geometry')} (`{record['command']}`).\n")


def defaults(records: Records) -> str:
    names = [name for name in next(iter(RECIPES.values())) if name != "alphas"]
    rows = [[f"`{name}`", *(_value(recipe.get(name)) for recipe in RECIPES.values())]
            for name in names]
    rows.insert(1, ["`alpha` of rs-fgsm, n-fgsm, pgd, in epsilons",
                    *(", ".join(f"{value:.3g}" for value in recipe["alphas"].values())
                      for recipe in RECIPES.values())])
    return as_table(["", *RECIPES], rows)


def _value(value: object) -> str:
    return "side / 8" if value is None else f"{value:.4g}" if isinstance(value, float) else (
        {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value))


BLOCKS = {"results": results, "puma": puma, "collapse": collapse,
          "kernels": kernels, "toy-accuracy": toy_accuracy, "toy-verdicts": toy_verdicts,
          "perceptron": perceptron, "table2": table2, "readings": readings,
          "recipes": defaults}
