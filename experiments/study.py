"""Your own study: arms over seeds, attacked and compared, from a file.

    python -m experiments study mine.toml [--jobs N] [--data-dir DIR]

The file, in TOML:

    seeds = 5                     # 0 to 4; first_seed = 10 begins at 10
    attack = "pgd-20"             # as for evaluate.py
    n = 10000                     # test images to attack
    # also = "autoattack"         # a second attack, and on how many images
    # also_n = 500

    [setup]                       # flags of train.py that all runs share, with _ for -; one that
                                  # takes no value is true: skip_bad = true
    dataset = "digits"
    recipe = "robust"

    [arms.all]                    # of each arm the flags that differ
    [arms.fewer]                  # fewer epochs on all data, as many examples as with pruning
    epochs = 19
    [arms.random]
    prune = "random"
    p = 0.4
    epoch = 3
    [arms.mine]
    prune = "mine.py:my_rule"
    p = 0.4
    epoch = 3

    [compare]                     # an arm, and the arm that it is compared with
    random = "fewer"
    mine = "fewer"

    # [parts.quick]               # instead of seeds and n above: parts of the study, each with its
    # arms = ["all", "mine"]      # own; a part without `arms` has all of them
    # seeds = 1
    # n = 1000

mine.py lies beside the study's file, and so does a file of `labels`. Runs lie in
runs/mine/ARM-SEED, records in results/mine/ARM-SEED.json. What has a record is not repeated, and
what was cut off goes on, so the same command continues the study. It prints, and writes into
results/mine/: mine.md, the table of the arms and the comparisons, and mine.png; of a part, PART.md
and PART.png. "worst class" is the robust accuracy of that class. A comparison is by seed; from
three seeds on it has Student's 95 % interval, and a verdict that holds for all comparisons of the
table together (Holm's correction).

labels = "symmetric-0.4" makes 40 % of the training labels wrong: any other class, by the seed.
With `labels`, the table has the share that was dropped, the share of wrong ones among those kept,
and precision and recall of what was dropped.

In an arm, `scores = "{margins}"` stands for the margins under this seed's run of the arm `full`,
and `eps_floor = "{half}"` for half of the data set's budget.
"""
from pathlib import Path

import numpy as np

from advprune import console, files, own_code
from benchmarks.tables import as_table
from experiments import runner, studies
from experiments.claims import CLEAN, ROBUST, by_seed, holm, less, p_value, with_interval
from experiments.compare import say_unfair, unequal
from experiments.records import spread


def main(argv=None):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("file", help="the study, FILE.toml")
    flag("--jobs", type=console.positive_int, default=1, help="how many runs at a time (1)")
    flag("--again", action="store_true", help="run what has a record too")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    args = parser.parse_args(argv)
    args.seeds, args.data_dir = None, str(Path(args.data_dir).resolve())
    study = studies.read(str(Path(args.file).resolve()))
    for run in (run for part in study.parts for run in part.runs([part.first_seed])):
        for name, (file, code) in run.own().items():  # found before the first arm trains
            own_code.loaded(file, code, name)
    result = runner.run_all(Path(args.file).stem, study.parts, args)
    return {**result, "written": [path for part in study.parts for path in written(study, part)]}


def written(study, part):
    """Say and write what the records of this part are; the paths of table and picture."""
    from experiments import figures  # here, because it imports matplotlib

    rows = studies.rows(runner.RESULTS, part)
    say_unfair(filter(None, (
        unequal(one, other, mean(rows, one, "examples"), mean(rows, other, "examples"))
        for one, other in compared(study, rows))))
    text, folder = tables(study, rows), runner.RESULTS / part.setup
    print(text)
    files.write(folder / f"{part.name}.md", text)
    files.write_figure(folder / f"{part.name}.png",
                       figures.study(rows, part.name, study.setup.attack))
    return [str(folder / f"{part.name}.{kind}") for kind in ("md", "png")]


def compared(study, rows):
    """The pairs of arms to compare that have rows."""
    there = {row["arm"] for row in rows}
    return [pair for pair in study.compare.items() if there.issuperset(pair)]


def tables(study, rows):
    """The arms, and the comparisons, in Markdown. The verdict is of the first attack."""
    names, also = {"clean": CLEAN, study.setup.attack: ROBUST}, study.setup.also
    if also:
        names[f"{also}, {rows[0][also]['n']:,} images"] = also
        rows = [{**row, also: row[also][ROBUST]} for row in rows]
    by_class = all("by_class" in row for row in rows)  # earlier records have none
    noisy = all("wrong" in row for row in rows)
    arms = [[arm, str(row["seeds"]), *(
        spread(row, name) if row["seeds"] > 1 else f"{row[name]:.3f}" for name in names.values()),
        *([f"{worst(rows, arm):.3f}"] if by_class else []), f"{mean(rows, arm, 'examples'):,.0f}",
        *(wrong_labels(rows, arm) if noisy else [])]
        for arm, row in studies.summary(rows, names.values()).items()]
    text = as_table(["arm", "seeds", *names, *(["worst class"] if by_class else []), "examples",
                     *(["dropped", "wrong among kept", "precision", "recall"] if noisy else [])],
                    arms)
    pairs, robust = [], []
    for one, other in compared(study, rows):
        differences = [by_seed(rows, less(one, other, name)) for name in names.values()]
        robust.append(differences[1])
        more = mean(rows, one, "examples") / mean(rows, other, "examples") - 1
        pairs.append([f"{one} less {other}", str(len(differences[0])), *(
            with_interval(values) if len(values) >= studies.LEAST else f"{values.mean():+.3f}"
            for values in differences), f"{more:+.1%}"])
    if pairs:
        head = ["comparison, by seed", "seeds", *names, "examples",
                f"{study.setup.attack}: verdict"]
        text += "\n" + as_table(head, [
            [*pair, said] for pair, said in zip(pairs, verdicts(robust), strict=True)])
    return text


def verdicts(differences):
    """better, worse or no clear difference, of each of these by seed; Holm 1979's correction.

    A verdict holds at 5 % for all of them together. Fewer than three seeds have none.
    """
    clear = holm([p_value(values) for values in differences])
    return ["" if len(values) < studies.LEAST else "no clear difference" if not sure
            else "better" if values.mean() > 0 else "worse"
            for values, sure in zip(differences, clear, strict=True)]


def worst(rows, arm):
    """The robust accuracy of the worst class, as a mean over seeds."""
    return float(np.mean([min(robust for _, robust in row["by_class"].values())
                          for row in rows if row["arm"] == arm]))


def wrong_labels(rows, arm):
    """The share dropped, that of wrong labels among those kept; precision and recall."""
    kept, dropped = ({name: sum(row["wrong"][part][name] for row in rows if row["arm"] == arm)
                      for name in ("labels", "wrong")} for part in ("kept", "dropped"))
    return [f"{some / all:.3f}" if all else "—" for some, all in (
        (dropped["labels"], kept["labels"] + dropped["labels"]),
        (kept["wrong"], kept["labels"]), (dropped["wrong"], dropped["labels"]),
        (dropped["wrong"], kept["wrong"] + dropped["wrong"]))]


def mean(rows, arm, name):
    values = [row[name] for row in rows if row["arm"] == arm]
    return sum(values) / len(values)
