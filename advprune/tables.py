"""The tables of README and docs, and the pictures of figures/, from the records in results/.

A Markdown file has places for them, which `render` fills:

    <!-- render: NAME -->
    <!-- end -->

NAME is a function of this module or of speed.py (with - for _), or `example FILE`, which prints
examples/FILE.py.
"""
import re
from pathlib import Path
from statistics import median

from advprune import files, recipes, runs

PLACE = re.compile(r"(<!-- render: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Records:
    """The records of a folder: records["puma-mnist"] is the content of puma-mnist.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> dict:
        return runs.read_record(self.folder / f"{name}.json")


def render(root: Path) -> list[str]:
    """Write all tables and pictures below root; returns the files written."""
    from advprune import plots, speed

    records, written = Records(root / "results"), []
    for path in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        text = path.read_text()
        filled = PLACE.sub(lambda place: place[1] + block(place[2], root) + place[3], text)
        if filled != text:
            files.write(path, filled)
            written.append(str(path.relative_to(root)))
    for name, draw in plots.FIGURES.items():
        files.write_figure(root / "figures" / f"{name}.png", draw(records))
        written.append(f"figures/{name}.png")
    for name, draw in speed.FIGURES.items():
        if (root / "results" / f"cpu-{name}.json").exists():
            files.write_figure(root / "figures" / f"{name}.png", draw(records))
            written.append(f"figures/{name}.png")
    return written


def block(name: str, root: Path) -> str:
    """The text of one place."""
    kind, _, file = name.partition(" ")
    if kind == "example":
        return f"```python\n{(root / 'examples' / f'{file}.py').read_text()}```\n"
    from advprune import speed  # which uses this module

    return {**BLOCKS, **speed.BLOCKS}[name](Records(root / "results"))


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _spread(row: dict, name: str) -> str:
    """Mean +- standard deviation over seeds."""
    return f"{row[name]:.3f} ± {row[f'{name}_std']:.3f}"


def _source(*names: str) -> str:
    return "\nFrom " + ", ".join(f"`results/{name}.json`" for name in names)


# --- what pruning does

ARMS = {"full": "all data", "undefended": "all data, no attack (`--attack none`)",
        "random": "`--prune random`", "high": "`--prune high`"}


def results(records: Records) -> str:
    record = records["pruning-digits"]
    rows = []
    for arm, row in record["summary"].items():
        how, _, p = arm.partition("-")
        if p in ("0.2", "0.6"):  # in the picture
            continue
        examples = next(r["examples"] for r in record["rows"] if r["arm"] == arm)
        full = next(r["examples"] for r in record["rows"] if r["arm"] == "full")
        kind = how == "undefended"
        rate = max(r["examples"] / r["train_seconds"] for r in record["rows"]
                   if (r["arm"] == "undefended") == kind)
        rows.append([ARMS[how] + (f" `--p {p}`" if p else ""), _spread(row, "clean_accuracy"),
                     _spread(row, "robust_accuracy"), f"{examples / full:.0%}",
                     f"{examples / rate:.1f}"])
    seeds = record["summary"]["full"]["seeds"]
    return _table(["training", "clean", "AutoAttack", "examples seen", "seconds"], rows) + (
        f"\nDigits, epsilon 0.13, pruned after epoch 3 of 30. Mean ± standard deviation over "
        f"{seeds} seeds; AutoAttack standard on the first {record['n']} test images. Seconds are "
        f"examples seen, divided by the highest rate of these runs on one CPU thread. From "
        f"`results/pruning-digits.json` (`{record['command']}`).\n")


def puma(records: Records) -> str:
    names = {"full": "all data", "random": "`--prune random`",
             "keep-hard": "`--prune high` by margin", "puma": "`--prune puma`",
             "puma-floor": "`--prune puma`, `--eps-floor` eps/2",
             "keep-easy": "`--prune low` by margin"}
    mnist, cifar = records["puma-mnist"], records["puma-cifar10-narrow"]
    rows = [[name, *(_spread(record["summary"][arm], accuracy) for record in (mnist, cifar)
                     for accuracy in ("clean_accuracy", "robust_accuracy"))]
            for arm, name in names.items()]
    return _table(["training, p = 0.3", "MNIST: clean", "AutoAttack", "narrow CIFAR-10: clean",
                   "AutoAttack"], rows) + (
        f"\nMean ± standard deviation over {mnist['summary']['full']['seeds']} seeds; AutoAttack "
        f"standard on the first {mnist['n']} test images."
        f"{_source('puma-mnist', 'puma-cifar10-narrow')} (`{mnist['command']}`, "
        f"`{cifar['command']}`).\n")


def collapse(records: Records) -> str:
    record = records["collapse-mnist"]
    names = {"paper": "`--recipe paper`", "robust": "`--recipe robust`",
             "rollback": "`--on-collapse rollback`", "small step": "`--alpha 0.2`"}
    rows, first = [], None
    for arm, row in record["summary"].items():
        mine = [r for r in record["rows"] if r["arm"] == arm]
        robust = [r["robust_accuracy"] for r in mine]
        seconds = min(r["train_seconds"] for r in mine)
        first = first or seconds
        share = median(r["guard_seconds"] / r["train_seconds"] for r in mine)
        events = [f"{event['epoch']} ({event['lr']:.4f})"
                  for r in mine for event in r["collapses"]]
        rows.append([names[arm], str(len(mine)), _spread(row, "robust_accuracy"),
                     f"{min(robust):.3f}", str(sum(value < 0.5 for value in robust)),
                     ", ".join(events), _spread(row, "clean_accuracy"), f"{seconds / first:.2f}",
                     f"{share:.1%}"])
    return _table(["MNIST, all data", "seeds", "PGD-50-10", "least", "below 0.5",
                   "collapsed in epoch (learning rate)", "clean", "time", "guard"], rows) + (
        f"\nMean ± standard deviation over seeds; PGD-50-10 on the first {record['n']:,} test "
        f"images. Time is that of the fastest run, as a ratio to the first row's, on one thread "
        f"of a shared machine. Guard is the median of its share of the training time."
        f"{_source('collapse-mnist')} "
        f"(`{record['command']}`).\n")


# --- what the kernels are worth

def _machine(record: dict) -> str:
    return (f"{record['device']}, {record['threads']} threads, {record.get('cpu', '')}, torch "
            f"{record['versions']['torch']}")


def ablation(records: Records) -> str:
    record = records["cpu-ablation"]
    rows = [[row["variant"], f"{row['training']:,.0f}", f"{row['training_ratio']:.2f}",
             f"{row['scoring']:,.0f}", f"{row['scoring_ratio']:.2f}"] for row in record["rows"]]
    return _table(["", "training, images/s", "ratio", "scoring, images/s", "ratio"], rows) + (
        f"\n{record['dataset']}, {record['examples']:,} examples, medians of {record['rounds']} "
        f"rounds in turn; {_machine(record)}.{_source('cpu-ablation')} (`{record['command']}`).\n")


def kernels(records: Records) -> str:
    record = records["cpu-kernels"]
    rows = [[f"`{row['operator']}`", f"{row['n']:,}",
             ", ".join(f"{name} {row[name]:.1f}" for name in list(row)[5:])]
            for row in record["rows"] if row["operator"] not in ("rs_start", "fgsm_step")]
    return _table(["operator", "elements", "alternatives, times as long"], rows) + (
        f"\n{_machine(record)}; medians in one process on a shared machine."
        f"{_source('cpu-kernels')} (`{record['command']}`).\n")


# --- the studies

def toy_accuracy(records: Records) -> str:
    record = records["toy-model"]
    rows = [[row["classifier"], f"{row['eps'] / record['eta']:.2f}", f"{row['simulated']:.4f}",
             "{:.4f} to {:.4f}".format(*row["interval"]), f"{row['closed_form']:.4f}"]
            for row in record["accuracy"]]
    return _table(["classifier", "budget / eta", "simulated", "95 % interval", "closed form"],
                  rows) + (
        f"\n{record['n']:,} draws, d = {record['d']}, p_R = {record['p_R']}, p_robust = "
        f"{record['p_robust']}, p_fragile = {record['p_fragile']}. The paper's printed formula "
        f"gives {record['as_printed']:.3f} for the robust classifier without attack; with the two "
        f"probabilities in place it gives {record['robust_accuracy']:.3f}."
        f"{_source('toy-model')} (`{record['command']}`).\n")


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
    return _table(["budget / eta", "p", "high costs standard accuracy more than robust",
                   "low costs both", "low improves both"], rows) + (
        "\nNumber of mixtures in which the statement holds, against random pruning at equal p; "
        f"changes up to 0.002 count as none.{_source('toy-model')} (`{record['command']}`).\n")


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
    return _table(["labels flipped", "budget", *head], rows) + (
        f"\nError on clean inputs of a random and of the hard half; the number is examples per "
        f"dimension before pruning; means of {record['repeats']} draws."
        f"{_source('perceptron')} (`{record['command']}`).\n")


def table2(records: Records) -> str:
    record = records["geometry"]
    rows = [[row["name"], f"{row['rho']:.1f}", f"{row['delta']:.3f}",
             *(["{:.2f}".format(row["paper"][0]), "{:.4f}".format(row["paper"][1])]
               if row["paper"] else ["", ""])] for row in record["rows"]]
    return _table(["", "rho", "delta", "Table 2: rho", "delta"], rows) + (
        f"{_source('geometry')} (`{record['command']}`).\n")


def defaults(records: Records) -> str:
    names = [name for name in next(iter(recipes.RECIPES.values())) if name != "alphas"]
    rows = [[f"`{name}`", *(_value(recipe.get(name)) for recipe in recipes.RECIPES.values())]
            for name in names]
    rows.insert(1, ["`alpha` of rs-fgsm, n-fgsm, pgd, in epsilons",
                    *(", ".join(f"{value:.3g}" for value in recipe["alphas"].values())
                      for recipe in recipes.RECIPES.values())])
    return _table(["", *recipes.RECIPES], rows)


def _value(value: object) -> str:
    return "side / 8" if value is None else f"{value:.4g}" if isinstance(value, float) else (
        {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value))


BLOCKS = {"results": results, "puma": puma, "collapse": collapse, "ablation": ablation,
          "kernels": kernels, "toy-accuracy": toy_accuracy, "toy-verdicts": toy_verdicts,
          "perceptron": perceptron, "table2": table2, "recipes": defaults}
