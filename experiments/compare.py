"""Do these runs do better than those? Finished runs, paired by seed, on the same test images.

    python -m experiments compare runs/pruned-* --against runs/all-* [--json FILE] [--figure FILE]

Each run needs an evaluation: `evaluate.py RUN --attack ... --n ...` writes RUN/eval-*.json. Every
evaluation that all the runs have is compared: the same attacks, budget and number of images.

From three seeds on, the interval is Student's, over the differences of the pairs. With one or two
seeds it is about these networks alone: of the images that only one of the two classifies right,
how many are the first one's (McNemar's test, exact; the interval is the normal one of a difference
of paired proportions). It says so if a comparison is not fair: if the two have seen another
number of examples, by more than 2 %, or were tested on other images.
"""
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from scipy import stats

from advprune import console, files, run
from advprune.config import FILES
from advprune.errors import UserError
from advprune.plots import BLUE, GREY, RED, figure, style
from experiments.claims import student
from experiments.studies import LEAST

UNFAIR = 0.02  # of the examples seen


def parse(argv):
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    flag("runs", nargs="+", metavar="RUN", help="finished runs, one for each seed")
    flag("--against", nargs="+", metavar="RUN", required=True, help="those to compare them with")
    flag("--json", metavar="FILE", help="write the record here; overwrites nothing")
    flag("--figure", metavar="FILE", help="draw the pairs into this PNG")
    args = parser.parse_args(argv)
    for path in filter(None, (args.json, args.figure)):
        files.check_new(path)
    return args


def by_seed(folders):
    """seed -> what is known of the run with it. Raises UserError if a seed is there twice."""
    found = {}
    for folder in folders:
        config, trained = run.read_config(folder), run.record(folder)
        if not trained:
            raise UserError(f"{folder} is not finished; end it by `python train.py --resume "
                            f"{folder}`")
        seed = config["settings"].seed
        if seed in found:
            raise UserError(f"{found[seed]['run']} and {folder} have the same seed, {seed}; give "
                            "one run for each seed")
        settings = asdict(config["settings"])
        given = {name: bool(settings[name]) for name in FILES}  # a study has one for each seed
        found[seed] = {"run": str(folder), "settings": settings | {"seed": None} | given,
                       "examples": trained["examples"],
                       "seconds": sum(trained[f"{part}_seconds"]
                                      for part in ("first", "train", "prune")),
                       "data": config["data"]["test"],
                       "evaluations": evaluations(folder)}
    return found


def evaluations(folder):
    """(attacks, eps, n) -> the record of each whole evaluation in a run's directory."""
    found = {}
    for path in sorted(Path(folder).glob("eval-*.json")):
        record = run.read_record(path, "attack", "epsilon", "n", "robust", "right")
        found[record["attack"], record["epsilon"], record["n"]] = record
    return found


def common(runs):
    """The evaluations that all runs have. Raises UserError if there is none."""
    shared = set.intersection(*(set(each["evaluations"]) for each in runs))
    if not shared:
        least = min(runs, key=lambda each: len(each["evaluations"]))
        raise UserError(f"the runs have no evaluation in common, and {least['run']} has "
                        f"{len(least['evaluations'])}; run `python evaluate.py RUN --attack "
                        "pgd-20 --n 10000` for each of them")
    return sorted(shared)


def bits(text):
    return np.frombuffer(text.encode(), np.uint8) == ord("1")


def paired(ours, theirs):
    """The difference of two proportions on the same images: its interval, and McNemar's p."""
    gained, lost, n = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours)
    difference = (gained - lost) / n
    error = 1.96 * np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    p = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    return {"difference": difference, "interval": [difference - error, difference + error],
            "only_first_right": gained, "only_second_right": lost, "p": float(p)}


def compared(pairs, key):
    """Clean and robust accuracy of all pairs in one evaluation: differences, interval, verdict."""
    found = {}
    for name, field in (("clean", "right"), ("robust", "robust")):
        right = [[bits(one["evaluations"][key][field]) for one in pair] for pair in pairs]
        differences = [float(ours.mean() - theirs.mean()) for ours, theirs in right]
        found[name] = row = {
            "first": float(np.mean([ours.mean() for ours, _ in right])),
            "second": float(np.mean([theirs.mean() for _, theirs in right])),
            "difference": float(np.mean(differences)), "differences": differences}
        if len(pairs) >= LEAST:
            row["interval"] = list(student(np.array(differences)))
        else:
            row["images"] = [paired(*each) for each in right]
            row["interval"] = row["images"][0]["interval"] if len(pairs) == 1 else None
        row["verdict"] = verdict(row["interval"])
    return {"attack": key[0], "epsilon": key[1], "n": key[2], **found}


def verdict(interval):
    if interval is None:
        return "no clear difference (two seeds; take three)"
    if interval[0] <= 0 <= interval[1]:
        return "no clear difference"
    return "better" if interval[0] > 0 else "worse"


def unequal(one, other, seen, others):
    """In words, that one has seen more or fewer examples than the other; None if it has not."""
    more = seen / others - 1
    if abs(more) <= UNFAIR:
        return None
    word = "more" if more > 0 else "fewer"
    return f"{one} has seen {abs(more):.0%} {word} examples than {other}"


def say_unfair(reasons):
    for reason in reasons:
        print(f"not a fair comparison: {reason}", file=sys.stderr)


def unfair(pairs):
    """What speaks against comparing these pairs, in words."""
    reasons = []
    for runs in zip(*pairs, strict=True):
        if odd := [one["run"] for one in runs if one["settings"] != runs[0]["settings"]]:
            reasons.append(f"{odd[0]} differs from {runs[0]['run']} in more than the seed")
    for ours, theirs in pairs:
        if reason := unequal(ours["run"], theirs["run"], ours["examples"], theirs["examples"]):
            reasons.append(reason)
        if ours["data"] != theirs["data"]:
            reasons.append(f"{ours['run']} and {theirs['run']} have other test images")
    return reasons


def report(record):
    seconds, examples = record["seconds"], record["examples"]
    print("{} pairs by seed ({}); seconds {:,.0f} against {:,.0f}, examples seen {:,.0f} against "
          "{:,.0f}".format(len(record["pairs"]), ", ".join(map(str, record["seeds"])), *seconds,
                           *examples))
    for row in record["evaluations"]:
        print(f"{row['attack']}, eps = {row['epsilon']:.4g}, {row['n']:,} test images")
        for name in ("clean", "robust"):
            one = row[name]
            interval = " ({:+.4f} to {:+.4f})".format(*one["interval"]) if one["interval"] else ""
            print(f"{name:>8} {one['first']:.4f} against {one['second']:.4f}: "
                  f"{one['difference']:+.4f}{interval}: {one['verdict']}")


@style
def draw(record):
    """The differences of each pair, and their mean with its interval."""
    rows = [(f"{row['attack']}, {row['n']:,} images\n{name}", row[name])
            for row in record["evaluations"] for name in ("clean", "robust")]
    drawn = figure(0.6 * len(rows) + 1.4)
    axes = drawn.subplots()
    for line, (_, row) in enumerate(rows):
        axes.plot(row["differences"], [line] * len(row["differences"]), "o", color=BLUE,
                  mec="none", alpha=0.6, label="a pair of one seed" if not line else None)
        if row["interval"]:
            axes.plot(row["interval"], [line] * 2, color=RED, lw=2,
                      label="95 % interval" if not line else None)
    axes.axvline(0, color=GREY, lw=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    first, second = (Path(record["pairs"][0][i]).name for i in (0, 1))
    axes.set(xlabel=f"accuracy of {first} less that of {second}", ylim=(len(rows) - 0.5, -0.5))
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


def main(argv=None):
    args = parse(argv)
    ours, theirs = by_seed(args.runs), by_seed(args.against)
    if ours.keys() != theirs.keys():
        raise UserError("runs are paired by seed: the first have the seeds "
                        f"{', '.join(map(str, sorted(ours)))}, the others "
                        f"{', '.join(map(str, sorted(theirs)))}")
    seeds = sorted(ours)
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    keys = common([one for pair in pairs for one in pair])
    reasons = unfair(pairs)
    say_unfair(reasons)
    record = {
        "seeds": seeds, "pairs": [[one["run"] for one in pair] for pair in pairs],
        "seconds": [float(np.mean([pair[i]["seconds"] for pair in pairs])) for i in (0, 1)],
        "examples": [float(np.mean([pair[i]["examples"] for pair in pairs])) for i in (0, 1)],
        "unfair": reasons, "evaluations": [compared(pairs, key) for key in keys]}
    report(record)
    if args.json:
        files.write_json(args.json, record)
    if args.figure:
        files.write_figure(args.figure, draw(record))
    return record


