"""The tables of docs/evidence.md: the claims with their verdicts, Table 1, equal time."""
import re
from collections.abc import Callable

from experiments import figures as pictures
from experiments import studies
from experiments.claims import (
    CLAIMS,
    CLEAN,
    EQUAL,
    ROBUST,
    by_seed,
    less,
    measured,
    verdict,
    with_interval,
)
from experiments.studies import LEAST
from experiments.tables import Records, as_table, spread

SETUP_TITLES = {"mnist-paper": "MNIST, paper's recipe", "mnist-robust": "MNIST, robust recipe",
          "digits": "digits", "mnist-pgd5": "MNIST, PGD-5",
          "cifar10-width16": "CIFAR-10, width 16",
          "fashion-mnist": "Fashion-MNIST, robust recipe"}
NAMES = {"full": "all data", "small-step": "all data, `--alpha 0.2`"}

# Table 1 of Kaufmann et al. 2022: clean and AutoAttack accuracy in percent, mean and deviation.
PAPER = {
    "mnist": {"full": (97.67, 0.01, 70.05, 7.29), "random-0.2": (97.78, 1.00, 60.77, 11),
              "low+high-0.2": (94.10, 5.98, 67.43, 9.80),
              "random-0.6": (98.01, 0.12, 65.50, 0.013),
              "low+high-0.6": (94.60, 5.95, 70.11, 7.81)},
    "cifar10": {"full": (79.68, 0.27, 44.59, 0.27), "random-0.2": (73.26, 0.85, 39.63, 0.62),
                "low+high-0.2": (70.71, 1.42, 37.84, 1.11),
                "random-0.6": (64.04, 1.48, 33.54, 1.30),
                "low+high-0.6": (50.64, 2.09, 25.32, 1.43)}}


PICTURES = {  # of figures/: what it shows, and the experiment
    "pruning-mnist": ("MNIST, robust recipe: accuracy against the data left (figures 2, 3 and 7)",
                      "figure3"),
    "pruning-cifar10": ("CIFAR-10, width 16: accuracy against the data left (figure 4)",
                        "figure4"),
    "figure1": ("MNIST: when to prune (figure 1)", "figure1")}


def claims(records: Records) -> str:
    rows = []
    for claim in CLAIMS:
        values = measured(claim, records)
        said = verdict(values, claim.bound, claim.below)
        if len(values) < LEAST:
            setup = studies.SETUPS.get(claim.setup)
            on = f" --dataset {setup.dataset}" if setup else ""
            said += f": `python -m experiments {claim.experiment}{on} --jobs 2`"
        sign = "<" if claim.below else ">"
        rows.append([claim.source, claim.says, SETUP_TITLES.get(claim.setup, claim.setup),
                     said, f"{sign} {claim.bound:g}", with_interval(values), str(len(values))])
    return as_table(["source", "claim", "on", "verdict", "difference asked",
                   "measured (95 % interval)", "n"], rows, left=7)


def table1(records: Records) -> str:
    """Table 1, ours beside the paper's."""
    text = []
    for experiment, part in ((name, part) for name in ("table1", "table2")
                             for part in studies.EXPERIMENTS[name]):
        study, rows = records.study(experiment, part.setup), []
        known = PAPER.get(part.dataset, {})
        for arm in part.arms:
            clean, _, attacked, deviation = known.get(arm, (0, 0, 0, 0))
            paper = ([f"{clean / 100:.3f}", f"{attacked / 100:.3f} ± {deviation / 100:.3f}"]
                     if clean else ["", ""] if known else [])
            row, name = study["summary"].get(arm, {"seeds": 0}), NAMES.get(arm, arm)
            if row["seeds"] < 2:
                rows.append([name, str(row["seeds"]), "not yet measured", "", "", *paper])
                continue
            robust = [r[ROBUST] for r in study["rows"] if r["arm"] == arm]
            rows.append([name, str(row["seeds"]), spread(row, CLEAN), spread(row, ROBUST),
                         f"{min(robust):.3f}", *paper])
        head, beside = ["training", "seeds", "clean", "AutoAttack", "least"], ""
        if known:
            head += ["paper: clean", "AutoAttack"]
            beside = "; the paper's are of 30 runs"
        text.append(f"**{SETUP_TITLES[part.setup]}**\n\n" + as_table(head, rows) + (
            f"\nAutoAttack standard on the first {part.n} test images; mean ± standard "
            f"deviation over seeds{beside}.{study['source']}"))
    return "\n".join(text)


def headline(records: Records) -> str:
    """README's line at full width, beside random pruning and all data; of one seed."""
    study = records.study("headline", "cifar10")
    command = "`python -m experiments headline`, or `make gpu-records` on a machine with a GPU"
    if not study["rows"]:
        return f"What this line gives, at full size, is not yet measured: {command}.\n"
    rows = []
    for row in study["rows"]:
        hours = (row["train_seconds"] + row["prune_seconds"]) / 3600
        rows.append([f"`--prune {row['prune']} --p {row['p']}`" if row["p"] else "all data",
                     f"{row[CLEAN]:.3f}", *(
                         "{:.3f} ({:.3f} to {:.3f})".format(at[ROBUST], *at["robust_interval"])
                         for at in (row, row["pgd"])), f"{hours:.2f}", row["device"]])
    clean, _, attacked, deviation = PAPER["cifar10"]["full"]
    rows.append(["all data, in the paper (30 runs)", f"{clean / 100:.3f}",
                 f"{attacked / 100:.3f} ± {deviation / 100:.3f}", "", "0.50", "its GPU"])
    return as_table(["CIFAR-10, PreActResNet18, 15 epochs", "clean", "AutoAttack", "PGD-50-10",
                   "hours", "on"], rows) + (
        f"\nOne seed: no verdict. Accuracies on the first {study['n']} test images, with 95 % "
        f"intervals; clean on all 10,000. From `results/cifar10/` ({command}).\n")


def equal_time(records: Records) -> str:
    """Each pruned arm less all data for as many examples, by seed."""
    text = []
    for setup, pairs in EQUAL.items():
        rows = records.study("frontier", setup)["rows"]
        table = []
        for p, epochs in pairs.items():
            for arm in dict.fromkeys(row["arm"] for row in rows):
                # Those by margin prune at the start, so they have seen fewer examples.
                if not re.fullmatch(rf"(?!margin|puma)[a-z+]+-{p}(-running|-balanced)?", arm):
                    continue
                clean, robust = (by_seed(rows, less(arm, f"full-{epochs}-epochs", accuracy))
                                 for accuracy in (CLEAN, ROBUST))
                if len(robust) >= LEAST:
                    table.append([arm, f"{epochs} epochs", str(len(robust)), with_interval(clean),
                                  with_interval(robust)])
        if table:
            text.append(f"**{SETUP_TITLES[setup]}**\n\n" + as_table(
                ["pruned after epoch 3", "all data for", "seeds", "clean: difference",
                 "AutoAttack: difference"], table))
    if not text:
        return "Not yet measured: `python -m experiments frontier --jobs 2`.\n"
    return "\n".join(text) + (
        "\nAbove 0 the pruned run is better. Both have seen as many examples; the scoring is not "
        "counted. Means and 95 % intervals over seeds (`python -m experiments frontier --jobs "
        "2`).\n")


def frontier(records: Records) -> str:
    """Time and accuracy of every strategy, and which of them no other beats."""
    text = []
    for name, setup in (("digits", "digits"), ("mnist", "mnist-robust")):
        rows = pictures.ROWS[f"frontier-{name}"](records)
        points = pictures.costs(rows) if rows else {}
        best = pictures.front(points)
        table = [[f"**{arm}**" if arm in best else arm, f"{time:.2f}",
                  f"{mean:.3f} ± {spread:.3f}", str(sum(row["arm"] == arm for row in rows))]
                 for arm, (time, mean, spread) in sorted(points.items(), key=lambda at: at[1][0])]
        text.append(f"**{SETUP_TITLES[setup]}**\n\n" + (
            f"![AutoAttack accuracy against time](../figures/frontier-{name}.png)\n\n"
            + as_table(["training", "time", "AutoAttack", "seeds"], table)
            if table else "Not yet measured: `python -m experiments frontier --jobs 2`.\n"))
    return "\n".join(text) + (
        "\nTime is that of training and scoring; all data take 1. Bold: no other is faster and "
        "at least as accurate. Margins and PUMA's budgets need a trained network first, which is "
        "not counted.\n")


def figures(records: Records) -> str:
    """The pictures that there are records for, and the commands of the others."""
    text = ""
    for name, (says, command) in PICTURES.items():
        text += (f"![{says}](../figures/{name}.png)\n\n{says}. Dots are means over seeds, bars "
                 f"standard deviations.\n(`python -m experiments {command} --jobs 2`)\n\n"
                 if pictures.ROWS[name](records) else
                 f"{says}: not yet measured: `python -m experiments {command} --jobs 2`.\n\n")
    return text


BLOCKS: dict[str, Callable[[Records], str]] = {
    "claims": claims, "headline": headline, "table1": table1, "equal-time": equal_time,
    "frontier": frontier, "figures": figures}
