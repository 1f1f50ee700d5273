"""The tables of README and docs of what was trained: claims, Table 1, equal time, the studies."""
from collections import Counter
from collections.abc import Callable
from functools import partial
from statistics import mean, median

from advprune.config import FOLLOWS, RECIPES
from benchmarks.tables import TABLES, as_table
from experiments import figures as pictures
from experiments import studies, study
from experiments.claims import (
    AS_RUN,
    CIFAR_EPOCHS,
    CLEAN,
    COMPLETED,
    DECISIVE,
    EQUAL,
    NOISY,
    OTHERS,
    ROBUST,
    Claim,
    at_equal_examples,
    by_seed,
    fewer_epochs,
    holm,
    less,
    measured,
    p_value,
    schedules,
    student,
    verdict,
    with_interval,
)
from experiments.records import Records, source, spread
from experiments.studies import LEAST

SETUP_TITLES = {"mnist-paper": "MNIST, paper's recipe", "mnist-robust": "MNIST, robust recipe",
                "digits": "digits", "mnist-pgd5": "MNIST, PGD-5",
                "cifar10-width16": "CIFAR-10, width 16",
                "cifar10-authors": "CIFAR-10, width 16, as the authors ran it, apgd-ce",
                "mnist-authors": "MNIST, as the authors ran it, apgd-ce",
                "mnist-robust-apgd": "MNIST, robust recipe, seeds 10 to 19, apgd-ce",
                "low-mnist": "MNIST, robust recipe, seeds 10 to 19, PGD-20",
                "fashion-mnist": "Fashion-MNIST, robust recipe",
                "noisy-mnist-0.4": "MNIST with 40 % of the labels changed, PGD-20",
                "noisy-cifar10-worst": "CIFAR-10, width 16, with labels of people, 40 % of them "
                                       "wrong, PGD-20",
                **{f"noisy-{name}": f"{title}, PGD-20" for name, title in (
                    ("fashion-0.4", "Fashion-MNIST with 40 % of the labels changed"),
                    ("mnist-0", "MNIST"), ("fashion-0", "Fashion-MNIST"),
                    ("cifar10-0", "CIFAR-10, width 16"))}}
RECIPES_OF_COLOUR = "n-fgsm-8", "rs-fgsm-8"  # robust, and the paper's
NAMES = {"full": "all data", "small-step": "all data, `--alpha 0.2`"}

# Table 1 of Kaufmann et al. 2022: clean and "AutoAttack" accuracy in percent, mean and deviation.
# Its "loss-based" drops the extremes, and its "AutoAttack" is apgd-ce, by its authors' code.
PAPER = {
    "mnist": {"full": (97.67, 0.01, 70.05, 7.29), "random-0.2": (97.78, 1.00, 60.77, 11),
              "extremes-0.2": (94.10, 5.98, 67.43, 9.80),
              "random-0.6": (98.01, 0.12, 65.50, 0.013),
              "extremes-0.6": (94.60, 5.95, 70.11, 7.81)},
    "cifar10": {"full": (79.68, 0.27, 44.59, 0.27), "random-0.2": (73.26, 0.85, 39.63, 0.62),
                "extremes-0.2": (70.71, 1.42, 37.84, 1.11),
                "random-0.6": (64.04, 1.48, 33.54, 1.30),
                "extremes-0.6": (50.64, 2.09, 25.32, 1.43)}}


DOTS = "Dots are means over seeds, bars standard deviations"
PICTURES = {  # of figures/: what it shows, how, and the experiment
    "pruning-mnist": ("MNIST, robust recipe: accuracy against the fraction dropped (figures 2, 3 "
                      "and 7)", DOTS, "figure3"),
    "pruning-cifar10": ("CIFAR-10, width 16: accuracy against the fraction dropped (figure 4)",
                        DOTS, "figure4"),
    "figure1": ("MNIST, robust recipe: random pruning less all data, by the epoch of pruning "
                "(figure 1)", "Dots are mean differences by seed, bars 95 % intervals",
                "figure1")}


def _on(claim: Claim) -> str:
    return SETUP_TITLES.get(claim.setup, claim.setup)


def _command(claim: Claim) -> str:
    """What measures this claim."""
    on = "".join(f" --dataset {part.dataset}" for part in studies.EXPERIMENTS.get(
        claim.experiment, ()) if part.setup == claim.setup)
    return f"`python -m experiments {claim.experiment}{on} --jobs 2`"


def claims(records: Records) -> str:
    """The claims that decide, by a reader's questions; verdicts that hold for all together."""
    asked = [(question, claim) for question, of in DECISIVE.items() for claim in of]
    values = [measured(claim, records) for _, claim in asked]
    clear = holm([p_value(found, claim.bound)
                  for (_, claim), found in zip(asked, values, strict=True)])
    rows, before = [], ""
    for (question, claim), found, sure in zip(asked, values, clear, strict=True):
        said = verdict(claim, found, sure)
        if len(found) < LEAST:
            said += f": {_command(claim)}"
        rows.append([question if question != before else "", claim.says, _on(claim),
                     f"**{said}**" if sure else said, with_interval(found), str(len(found)),
                     claim.source])
        before = question
    return as_table(["question", "claim", "on", "verdict", "difference (95 % interval)", "seeds",
                     "source"], rows, left=7)


def other_claims(records: Records) -> str:
    """All other claims, each with a verdict of its own; then those that are not yet measured."""
    found = [(claim, measured(claim, records)) for claim in OTHERS]
    there = [(claim, values) for claim, values in found if len(values) >= LEAST]
    rows = [[claim.source, claim.says, _on(claim),
             verdict(claim, values, p_value(values, claim.bound) < 0.05),
             f"{'<' if claim.below else '>'} {claim.bound:g}", with_interval(values),
             str(len(values))] for claim, values in there]
    absent = [[claim.source, claim.says, _on(claim), _command(claim)]
              for claim, values in found if len(values) < LEAST]
    return as_table(["source", "claim", "on", "verdict", "asked", "difference (95 % interval)",
                     "n"], rows, left=7) + (
        f"\nAn interval misses the true mean in 5 % of all cases, so about "
        f"{round(len(there) / 20)} of these {len(there)} may miss it.\n") + (
        "\n## Not yet measured\n\n" + as_table(["source", "claim", "on", "command"], absent,
                                               left=4) if absent else "")


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
            head += ["paper: clean", "apgd-ce"]
            beside = "; the paper's are of 30 runs"
        text.append(f"**{SETUP_TITLES[part.setup]}**\n\n" + as_table(head, rows) + (
            f"\nAutoAttack standard on the first {part.n} test images; mean ± standard "
            f"deviation over seeds{beside}.{study['source']}"))
    return "\n".join(text)


def completed(records: Records) -> str:
    """Table 1's runs on CIFAR-10 with a schedule that stops on the way, and one that completes."""
    rows = []
    for setup in (AS_RUN, COMPLETED):
        study = records.study("authors", setup)
        for arm in next(p for p in studies.EXPERIMENTS["authors"] if p.setup == setup).arms:
            row = study["summary"].get(arm, {"seeds": 0})
            how = "completes" if setup == COMPLETED or arm == "full" else "as the authors ran it"
            paper = PAPER["cifar10"].get(arm) if setup == AS_RUN else None
            beside = [f"{paper[0] / 100:.3f}", f"{paper[2] / 100:.3f}"] if paper else ["", ""]
            if not row["seeds"]:
                rows.append([NAMES.get(arm, arm), how, "0", "not yet measured", "", "", "",
                             *beside])
                continue
            mine = [r for r in study["rows"] if r["arm"] == arm]
            pgd = [r["pgd-20"]["robust_accuracy"] for r in mine]
            rows.append([NAMES.get(arm, arm), how, str(row["seeds"]),
                         f"{median(r['progress'] for r in mine):.0%}",
                         *(spread(row, name) if len(mine) > 1 else f"{row[name]:.3f}"
                           for name in (CLEAN, ROBUST)), f"{mean(pgd):.3f}", *beside])
    picture = ("![Accuracy of the pruned runs, as the authors ran them and with the schedule "
               "completed](../figures/schedules.png)\n\n"
               if pictures.ROWS["schedules"](records) else "")
    head = ["training", "schedule", "seeds", "of it done", "clean", "apgd-ce", "PGD-20",
            "paper: clean", "apgd-ce"]
    return picture + as_table(head, rows, left=2) + "\n" + _gains(records) + (
        "\nPreActResNet18 of width 16, bfloat16, 15 epochs, pruned after epoch 3; the paper's is "
        "of width 64. apgd-ce on the first 1,000 test images, PGD-20 on all 10,000. Mean ± "
        "standard deviation over seeds; one seed is no verdict (`python -m experiments authors "
        "--jobs 2`).\n")


def _gains(records: Records) -> str:
    """What completing gives, and whether it is then better than fewer epochs, by seed."""
    found, rows = schedules(records), []
    for p, epochs in CIFAR_EPOCHS:
        for other, says in ((f"random-{p}", "as the authors ran it"),
                            (f"full-{epochs}-epochs, completed", f"all data for {epochs} epochs")):
            values = [by_seed(found, less(f"random-{p}, completed", other, name))
                      for name in (CLEAN, ROBUST)]
            if len(values[0]) >= LEAST:
                rows.append([f"random-{p}: completed less {says}", str(len(values[0])),
                             *map(with_interval, values)])
    return as_table(["comparison, by seed", "seeds", "clean", "apgd-ce"], rows) if rows else ""


def of_study(name: str, records: Records) -> str:
    """The arms and the comparisons of an experiment that is a part of one study.

    Of an arm all seeds are there, or it is not measured yet.
    """
    (part,) = studies.EXPERIMENTS[name]
    of, rows = studies.read(part.file), studies.rows(records.folder, part)
    found = Counter(row["arm"] for row in rows)
    absent = [f"`{arm}`" for arm in part.arms if found[arm] < part.seeds]
    command = f"`python -m experiments {name} --jobs 2`"
    if len(absent) == len(part.arms):
        return f"Not yet measured: {command}.\n"
    rows = [row for row in rows if f"`{row['arm']}`" not in absent]
    left = f" Not yet measured: {', '.join(absent)}." if absent else ""
    return (f"{study.tables(of, rows)}\n{of.setup.attack} on {rows[0]['n']:,} test images; mean ± "
            f"standard deviation over seeds. From `results/{part.setup}/` ({command}).{left}\n")


def beside(rows: list[dict], arm: str, other: str, digits: int = 3) -> list[str]:
    """Of clean and of robust accuracy: "0.64 instead of 0.58 (95 % interval ...)".

    Both arms have the same seeds here: those that both have records of.
    """
    both = set.intersection(*({row["seed"] for row in rows if row["arm"] == name}
                              for name in (arm, other)))
    of = studies.summary([row for row in rows if row["seed"] in both])
    return [("{0:.{4}f} instead of {1:.{4}f} (95 % interval of the difference {2:+.{4}f} to "
             "{3:+.{4}f})").format(of[arm][name], of[other][name],
                                   *student(by_seed(rows, less(arm, other, name))), digits)
            for name in (CLEAN, ROBUST)]


def schedule(records: Records) -> str:
    """README's sentences: what does a schedule that completes give?"""
    rows = pictures.ROWS["schedules"](records)
    if not rows:
        return "Not yet measured: `python -m experiments authors --dataset cifar10 --jobs 2`.\n"
    found = studies.summary(rows)
    whole = found["full"]
    said = [f"CIFAR-10, width 16, {whole['seeds']} seeds. All data: accuracy {whole[CLEAN]:.3f}; "
            f"under `apgd-ce`, the paper's \"AutoAttack\", {whole[ROBUST]:.3f}."]
    for p, epochs in CIFAR_EPOCHS:
        arm, fewer = f"random-{p}", f"full-{epochs}-epochs, completed"
        if {arm, f"{arm}, completed"} <= found.keys():
            clean, robust = beside(rows, f"{arm}, completed", arm)
            said.append(f"Random pruning of {100 * p:.0f} %, schedule completed: accuracy "
                        f"{clean}; under `apgd-ce` {robust}.")
        if fewer in found:
            said.append(f"All data for {epochs} epochs, as many examples: "
                        f"{found[fewer][CLEAN]:.3f} and {found[fewer][ROBUST]:.3f}.")
    return " ".join(said) + "\n"


def recipe(records: Records) -> str:
    """README's sentence: what is --recipe robust worth on colour images?"""
    study = records.study("robust-cifar10", "robust-cifar10")
    seeds = [study["summary"].get(arm, {"seeds": 0})["seeds"] for arm in RECIPES_OF_COLOUR]
    if min(seeds) < LEAST:
        return ("   What it gains on colour images is not yet measured: `python -m experiments "
                "robust-cifar10`.\n")
    clean, robust = beside(study["rows"], *RECIPES_OF_COLOUR)
    return (f"   CIFAR-10, width 16, 8 epochs, beside the paper's recipe ({min(seeds)} seeds): "
            f"accuracy {clean}; under PGD-20 on all test images {robust}.\n")


def wrong_labels(records: Records) -> str:
    """README's sentence: is it worth anything to drop labels that are wrong?

    In these studies p is the share of wrong labels.
    """
    said = []
    for setup in NOISY:
        fewer = fewer_epochs(setup)
        rows = [{**row, ROBUST: row["apgd-ce,apgd-t"][ROBUST]}
                for row in records.study(setup, setup)["rows"]]
        seeds = len(by_seed(rows, less("clean-first", fewer, CLEAN)))
        if seeds < LEAST:
            continue
        clean, robust = beside(rows, "clean-first", fewer, digits=2)
        said.append(f"   Measured on {SETUP_TITLES[setup].removesuffix(', PGD-20')}, p the same, "
                    f"beside fewer epochs of equal cost ({seeds} seeds): accuracy {clean}; under "
                    "`apgd-ce` and `apgd-t`, two of AutoAttack's attacks, on 500 test images "
                    f"{robust}.\n")
    return "".join(said) or ("   Whether that pays is not yet measured: `python -m experiments "
                             f"{NOISY[0]} --jobs 2`.\n")


def headline(records: Records) -> str:
    """README's line at full width, beside random pruning and all data; of one seed."""
    study = records.study("headline", "cifar10")
    command = "`python -m experiments headline`, or `make gpu-records` on a machine with a GPU"
    if not study["rows"]:
        return f"Not yet measured: {command}.\n"
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
    """Each pruned arm less fewer epochs at equal examples, by seed."""
    text = []
    for setup in EQUAL:
        study = records.study("frontier", setup)
        clean, robust = (at_equal_examples(study["rows"], setup, accuracy)
                         for accuracy in (CLEAN, ROBUST))
        if robust:
            text.append(f"**{SETUP_TITLES[setup]}**\n\n" + as_table(
                ["pruned after epoch 3", "beside", "seeds", "clean: difference",
                 "AutoAttack: difference"],
                [[arm, fewer, str(len(values)), with_interval(without), with_interval(values)]
                 for (arm, fewer, values), (_, _, without) in zip(robust, clean, strict=True)])
                + f"\nAutoAttack standard on the first {study['n']} test images.\n")
    if not text:
        return "Not yet measured: `python -m experiments frontier --jobs 2`.\n"
    return "\n".join(text) + (
        "\nAbove 0 the pruned run is better. Means and 95 % intervals over seeds (`python -m "
        "experiments frontier --jobs 2`).\n")


def frontier(records: Records) -> str:
    """Cost and accuracy of every strategy."""
    text = []
    for name, setup in (("digits", "digits"), ("mnist", "mnist-robust")):
        rows = pictures.ROWS[f"frontier-{name}"](records)
        points = pictures.costs(rows) if rows else {}
        table = [[arm, f"{time:.2f}", f"{mean:.3f} ± {spread:.3f}",
                  str(sum(row["arm"] == arm for row in rows))]
                 for arm, (time, mean, spread) in sorted(points.items(), key=lambda at: at[1][0])]
        text.append(f"**{SETUP_TITLES[setup]}**\n\n" + (
            f"![AutoAttack accuracy against cost](../figures/frontier-{name}.png)\n\n"
            + as_table(["training", "cost", "AutoAttack", "seeds"], table)
            + f"\nAutoAttack standard on the first {rows[0]['n']} test images.\n"
            if table else "Not yet measured: `python -m experiments frontier --jobs 2`.\n"))
    return "\n".join(text) + (
        "\nCost is the number of examples seen, plus the measured share of scoring, as a share "
        "of all data for all epochs. The pictures show the four strategies by loss. Dots are "
        "means over seeds, bars standard deviations. Margins and PUMA's budgets need a trained "
        "network first, which is not counted.\n")


def figures(records: Records) -> str:
    """The pictures that there are records for, and the commands of the others."""
    text = []
    for name, (says, how, experiment) in PICTURES.items():
        command = f"`python -m experiments {experiment} --jobs 2`"
        rows = pictures.ROWS[name](records)
        text.append(f"![{says}](../figures/{name}.png)\n\n{says}. {how}; AutoAttack standard on "
                    f"the first {rows[0]['n']} test images ({command}).\n" if rows else
                    f"{says}: not yet measured: {command}.\n")
    return "\n".join(text)


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
        "\nDigits, the paper's recipe, epsilon 0.13, pruned after epoch 3 of 30. Mean ± standard "
        f"deviation over {seeds} seeds; AutoAttack on the first {record['n']} test images. "
        f"Compare p 0.4 with 19 epochs and p 0.8 with 8: they see nearly equally many examples. "
        f"The first 3 epochs of a pruned run are on all data.{record['source']}")


def puma(records: Records) -> str:
    mnist, cifar = (records.study("puma", name) for name in ("mnist-pgd5", "cifar10-width4"))
    rows = [[name, *(spread(record["summary"][arm], accuracy) for record in (mnist, cifar)
                     for accuracy in ("clean_accuracy", "robust_accuracy"))]
            for arm, name in pictures.PUMA.items()]
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
        f"images. Time is the training time of a row's fastest run, divided by that of the first "
        f"row's, on one thread of a shared machine. Guard is the median of its share of the "
        f"training time.{record['source']}")


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
        f"{source('toy-model', record)}")


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
        f"changes up to 0.002 count as none.{source('toy-model', record)}")


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
        f"{source('perceptron', record)}")


def table2(records: Records) -> str:
    record, rows = records["geometry"], []
    for name in dict.fromkeys(row["name"] for row in record["rows"]):
        mine = [row for row in record["rows"] if row["name"] == name]
        ours = [f"{mean(row['rho'] for row in mine):.1f}",
                f"{mean(row['delta'] for row in mine):.3f}"]
        paper = mine[0]["paper"]
        rows.append([name if len(mine) == 1 else f"{name} (mean of {len(mine)} seeds)", *ours,
                     *([f"{paper[0]:.2f}", f"{paper[1]:.4f}"] if paper else ["", ""])])
    return as_table(["", "rho", "delta", "Table 2: rho", "delta"], rows) + source(
        "geometry", record)


def defaults(records: Records) -> str:
    names = [name for name in next(iter(RECIPES.values())) if name != "alphas"]
    rows = [[f"`{name}`", *(FOLLOWS[name] if recipe[name] is None else _value(recipe[name])
                            for recipe in RECIPES.values())] for name in names]
    rows.insert(1, ["`alpha` of rs-fgsm, n-fgsm, pgd, in epsilons",
                    *(", ".join(f"{value:.3g}" for value in recipe["alphas"].values())
                      for recipe in RECIPES.values())])
    return as_table(["", *RECIPES], rows)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- the benchmarks

# block -> the record that its command writes, which other records there are, flags
MEASURED = {
    "ablation": ("cpu-ablation", "*-ablation*", ""),
    "kernels": ("cpu-kernels", "*-kernels*", ""),
    "training": ("cpu-training-mnist", "cpu-training-*", " --dataset mnist"),
    "scale": ("cpu-scale", "cpu-scale", " --dataset mnist"),
    "layouts": ("cpu-layouts", "cpu-layouts*", "")}


def benchmark(what: str, records: Records) -> str:
    """The tables of all records of `python -m benchmarks WHAT`."""
    written, names, flags = MEASURED[what]
    found = sorted(path.stem for path in records.folder.glob(f"{names}.json"))
    return "\n".join(
        f"{TABLES[what](records[name])}.{source(name, records[name])}"
        for name in found) or (f"Not yet measured: `python -m benchmarks {what}{flags} --json "
                               f"results/{written}.json`.\n")


BLOCKS: dict[str, Callable[[Records], str]] = {
    **{what: partial(benchmark, what) for what in MEASURED},
    "claims": claims, "other-claims": other_claims, "headline": headline, "table1": table1,
    "completed": completed, "schedule": schedule, "recipe": recipe, "wrong-labels": wrong_labels,
    "equal-time": equal_time, "frontier": frontier, "figures": figures, "results": results,
    "puma": puma, "collapse": collapse, "toy-accuracy": toy_accuracy,
    "toy-verdicts": toy_verdicts, "perceptron": perceptron, "table2": table2,
    "recipes": defaults}
