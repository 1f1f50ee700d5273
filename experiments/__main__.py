"""The papers' experiments: the runs behind them, then tables and pictures.

    python -m experiments table1 --dataset mnist --jobs 2   two CPU cores, some hours
    python -m experiments figure3 [--dataset D] [--seeds 0-2] [--n-eval N] [--jobs N]
    python -m experiments all --jobs 2                          two CPU cores, more than a day
    python -m experiments render                            tables of README and docs/, figures/

table1   all data, random and low+high pruning at p 0.2 and 0.6 (Kaufmann et al. 2022, Table 1).
figure1  random pruning after epoch 0, 1, 3 and 6.
figure2, figure3, figure4, figure7    AutoAttack accuracy against the fraction dropped.
figure5  training time against examples seen (`python -m benchmarks scale`).
figure8, table2    t-SNE maps, density and separation (`geometry`); Fashion-MNIST pruned.
puma     PUMA (Maroto & Frossard 2024) as pruning.py reads it, at equal p.
frontier every strategy, and fewer epochs on all data: AutoAttack accuracy against time.
toy      section 5.2's distribution and PUMA's perceptron (`toy_model.py`).
digits, collapse, precision    the built-in digits; how often single-step training collapses, and
         what helps; bfloat16 beside float32.
authors  Table 1 as its authors' code runs it, and the same with a schedule that completes.
strategies-digits, strategies-mnist, low-mnist, infobatch-mnist    strategies from the field.
noisy-*  training labels of which some are wrong, and what finds those.
robust-cifar10, robust-cifar10-15, robust-small    recipes for colour images, 8 and 15 epochs; for
         600 images.
headline README's line, random pruning and all data: CIFAR-10 at full width. A GPU, or days.
render   makes what the records in results/ say; it trains nothing.

geometry, perceptron    the statistics of data sets, and PUMA's perceptron; each has --help.
compare  your own finished runs: do these do better than those? `compare --help`
study    your own arms over seeds, from a file: `study --help`

The files experiments/*.toml say which runs an experiment needs, in the form that `study` takes;
experiments share runs. A run lies in runs/SETUP/ARM-SEED and its record is
results/SETUP/ARM-SEED.json. What has a record is not repeated and an interrupted run is continued,
so the same command continues an experiment. With --again what has a record is repeated: the
finished run becomes runs/SETUP/ARM-SEED-2, and the new record replaces the old one once it is
whole. --jobs N does N runs at a time, each with its share of the cores; what they print is in
RUN.log.
"""
import argparse
import importlib
import re
import sys
from pathlib import Path

import toy_model
from advprune import console, files
from advprune.errors import UserError
from advprune.run import CHECKOUT
from benchmarks import __main__ as benchmarks
from experiments import geometry, perceptron, runner, studies

# --- experiments of one record each

def by_script(name, script, words, made=None):
    """Make results/NAME.json by this script, unless it is there; returns where it is.

    The script writes a folder with the file `made`, or, without it, the record itself.
    """
    path = runner.RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there", file=sys.stderr)
        return str(path)
    path.parent.mkdir(exist_ok=True)
    if made:
        folder = runner.RUNS / name
        if not (folder / made).exists():
            script.main([*words, "--out", str(folder)])
        files.write(path, (folder / made).read_text())
    else:
        script.main([*words, "--json", str(path)])
    return str(path)


def scale(args):
    return by_script("cpu-scale", benchmarks, ["scale", "--dataset", "mnist", "--data-dir",
                                              args.data_dir])


def statistics(args):
    mnist = next(part for part in studies.EXPERIMENTS["frontier"] if part.setup == "mnist-robust")
    pruned = mnist._replace(arms=("low+high-0.4",), seeds=studies.LEAST).runs()
    if not (runner.RESULTS / "geometry.json").exists():
        for run in pruned:
            runner.train_arm(run, args.data_dir)
    words = ["mnist", "fashion-mnist", "cifar10", "--data-dir", args.data_dir]
    for run in pruned:
        words += ["--pruned", str(runner.RUNS / run.name / "scores.npz")]
    return by_script("geometry", geometry, words, "geometry.json")


def toy(args):
    return [by_script("toy-model", toy_model, [], "toy_model.json"),
            by_script("perceptron", perceptron, [], "perceptron.json")]


COMMANDS = ("geometry", "perceptron", "compare", "study")  # with a command line of their own
SCRIPTS = {"figure5": scale, "figure8": statistics, "table2": statistics, "toy": toy}


# --- the command

def seeds(text):
    """5 is seeds 0 to 4, 3-6 is seeds 3 to 6."""
    if not (found := re.fullmatch(r"(\d+)-(\d+)|([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor FIRST-LAST")
    first, last = (0, int(found[3]) - 1) if found[3] else (int(found[1]), int(found[2]))
    if last < first:
        raise argparse.ArgumentTypeError(f"{text!r} ends before it begins")
    return range(first, last + 1)


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return importlib.import_module(f"experiments.{words[0]}").main(words[1:])
    parser = console.Parser(__doc__)
    flag = parser.add_argument
    names = list(dict.fromkeys([*studies.EXPERIMENTS, *SCRIPTS]))
    flag("experiment", choices=[*names, "all", "render", *COMMANDS])
    flag("--dataset", choices=list(dict.fromkeys(
        part.dataset for parts in studies.EXPERIMENTS.values() for part in parts)),
         help="only the runs on this data set (all)")
    flag("--seeds", type=seeds, help="how many, from seed 0 on, or FIRST-LAST (as the tables)")
    flag("--n-eval", type=console.positive_int, metavar="N",
         help="attack the first N test images (as the tables)")
    flag("--arms", metavar="A,B", help="only these arms (all)")
    flag("--again", action="store_true", help="run what has a record too")
    flag("--jobs", type=console.positive_int, default=1, help="how many runs at a time, each "
         "with its share of the cores (1)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    args = parser.parse_args(words)
    if args.experiment == "render":
        from experiments import render  # here, because it imports matplotlib

        return {"written": render.render(CHECKOUT)}
    args.data_dir = str(Path(args.data_dir).resolve())
    chosen = names if args.experiment == "all" else [args.experiment]
    parts = {name: parts_of(name, args) for name in chosen}
    if args.again and args.experiment == "all":
        raise UserError("--again needs one experiment, because experiments share runs")
    known = {arm: None for name in chosen for part in studies.EXPERIMENTS.get(name, ())
             if args.dataset in (None, part.dataset) for arm in part.arms}
    unknown = [arm for arm in (args.arms or "").split(",") if arm not in known]
    if args.arms and known and unknown:
        raise UserError(f"{unknown[0]!r} of --arms is none of {', '.join(known)}")
    narrowed = args.dataset or args.arms or args.again or args.seeds or args.n_eval
    if narrowed and not any(parts.values()):
        raise UserError(f"{args.experiment} has no such runs")
    results = []
    for name in chosen:
        if parts[name]:
            results.append(runner.run_all(name, parts[name], args))
        if name in SCRIPTS and not args.arms and args.dataset in (None, "mnist"):
            results.append({"experiment": name, "record": SCRIPTS[name](args)})
    return results[0] if len(results) == 1 else {"experiments": results}


def parts_of(name, args):
    """The parts of an experiment that the flags leave."""
    parts = [part for part in studies.EXPERIMENTS.get(name, ())
             if args.dataset in (None, part.dataset)]
    if args.arms:
        wanted = args.arms.split(",")
        parts = [part._replace(arms=tuple(arm for arm in part.arms if arm in wanted))
                 for part in parts]
    parts = [part for part in parts if part.arms]
    if args.n_eval:
        parts = [part._replace(n=args.n_eval) for part in parts]
    return parts


if __name__ == "__main__":
    console.run(main)
