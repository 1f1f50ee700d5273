"""Your own study: arms over seeds, attacked and compared, from a file.

    python -m experiments study mine.toml [--jobs N] [--data-dir DIR]

The file, in TOML:

    seeds = 5                     # 0 to 4; first_seed = 10 begins at 10
    attack = "pgd-20"             # as for evaluate.py
    n = 10000                     # test images to attack
    # also = "autoattack"         # a second attack, and on how many images
    # also_n = 500

    [setup]                       # flags of train.py that all runs share
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

mine.py lies beside the study's file, and so does a file of `labels`. labels = "symmetric-0.4"
makes 40 % of the training labels wrong: any other class, by the seed. With `labels`, the table has
the share of wrong ones among those kept, and precision and recall of what was dropped.

Runs lie in runs/mine/ARM-SEED, records in results/mine/ARM-SEED.json. What has a record is not
repeated, and what was cut off goes on, so the same command continues the study. It prints, and
writes into results/mine/: table.md, of the arms and the comparisons, and arms.png. "worst class"
is the robust accuracy of the worst class. A comparison is by seed; from three seeds on it has
Student's 95 % interval, and a verdict that holds for all comparisons of the table together (Holm's
correction).
"""
from pathlib import Path

import numpy as np
from scipy import stats

from advprune import console, files, own_code
from experiments import runner, studies
from experiments.claims import CLEAN, ROBUST, by_seed, less, with_interval
from experiments.compare import say_unfair, unequal
from experiments.records import as_table, spread


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
    for run in study.part.runs([0]):  # a wrong name is found before the first arm trains
        for name, (file, code) in run.own().items():
            own_code.loaded(file, code, name)
    result = runner.run_all(study.part.setup, [study.part], args)
    rows = studies.rows(runner.RESULTS, study.part)
    say_unfair(filter(None, (
        unequal(one, other, mean(rows, one, "examples"), mean(rows, other, "examples"))
        for one, other in study.compare.items())))
    text, folder = tables(study, rows), runner.RESULTS / study.part.setup
    print(text)
    files.write(folder / "table.md", text)
    from experiments import figures  # here, because it imports matplotlib

    label = f"accuracy under {study.setup.attack}, {study.part.n:,} test images"
    files.write_figure(folder / "arms.png", figures.study(rows, study.part.setup, label))
    return {**result, "table": str(folder / "table.md"), "figure": str(folder / "arms.png")}


def tables(study, rows):
    """The arms, and the comparisons, in Markdown."""
    attack = study.setup.attack
    by_class = all("by_class" in row for row in rows)  # earlier records have none
    noisy = all("wrong" in row for row in rows)
    arms = [[arm, str(row["seeds"]), *(
        spread(row, name) if row["seeds"] > 1 else f"{row[name]:.3f}" for name in (CLEAN, ROBUST)),
        *([f"{worst(rows, arm):.3f}"] if by_class else []), f"{mean(rows, arm, 'examples'):,.0f}",
        *(wrong_labels(rows, arm) if noisy else [])]
        for arm, row in studies.summary(rows).items()]
    text = as_table(["arm", "seeds", "clean", attack, *(["worst class"] if by_class else []),
                     "examples", *(["wrong among kept", "precision", "recall"] if noisy else [])],
                    arms)
    pairs, robust = [], []
    for one, other in study.compare.items():
        differences = [by_seed(rows, less(one, other, name)) for name in (CLEAN, ROBUST)]
        robust.append(differences[1])
        more = mean(rows, one, "examples") / mean(rows, other, "examples") - 1
        pairs.append([f"{one} less {other}", str(len(differences[0])), *(
            with_interval(values) if len(values) >= studies.LEAST else f"{values.mean():+.3f}"
            for values in differences), f"{more:+.1%}"])
    if pairs:
        head = ["comparison, by seed", "seeds", "clean", attack, "examples", f"{attack}: verdict"]
        text += "\n" + as_table(head, [
            [*pair, said] for pair, said in zip(pairs, verdicts(robust), strict=True)])
    return text


def verdicts(differences):
    """better, worse or no clear difference, of each of these by seed; Holm 1979's correction.

    A verdict holds at 5 % for all of them together. Fewer than three seeds have none.
    """
    p = [stats.ttest_1samp(values, 0).pvalue if len(values) >= studies.LEAST else np.nan
         for values in differences]
    order, said, sure = np.argsort(p), ["no clear difference"] * len(p), True
    tested = int(np.isfinite(p).sum())
    for rank, i in enumerate(order):
        if not np.isfinite(p[i]):
            said[i] = ""
            continue
        sure = sure and p[i] * (tested - rank) < 0.05
        if sure:
            said[i] = "better" if differences[i].mean() > 0 else "worse"
    return said


def worst(rows, arm):
    """The robust accuracy of the worst class, as a mean over seeds."""
    return float(np.mean([min(robust for _, robust in row["by_class"].values())
                          for row in rows if row["arm"] == arm]))


def wrong_labels(rows, arm):
    """The share of wrong labels among those kept; precision and recall of what was dropped."""
    kept, dropped = ({name: sum(row["wrong"][part][name] for row in rows if row["arm"] == arm)
                      for name in ("labels", "wrong")} for part in ("kept", "dropped"))
    return [f"{some / all:.3f}" if all else "—" for some, all in (
        (kept["wrong"], kept["labels"]), (dropped["wrong"], dropped["labels"]),
        (dropped["wrong"], kept["wrong"] + dropped["wrong"]))]


def mean(rows, arm, name):
    values = [row[name] for row in rows if row["arm"] == arm]
    return sum(values) / len(values)
