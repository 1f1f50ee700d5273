"""The papers' experiments: the runs behind them, then tables and pictures.

    python reproduce.py table1 --dataset mnist --jobs 2       two CPU cores, some hours
    python reproduce.py figure3 [--dataset D] [--seeds 0-2] [--n-eval N] [--jobs N]
    python reproduce.py all --jobs 2                          two CPU cores, more than a day
    python reproduce.py gpu [--budget SECONDS]                a GPU: `make gpu-records`
    python reproduce.py render                                tables of README and docs/, figures/

table1   all data, random and low+high pruning at p 0.2 and 0.6 (Kaufmann et al. 2022, Table 1).
figure1  random pruning after epoch 0, 1, 3 and 6.
figure2, figure3, figure4, figure7    AutoAttack accuracy against the fraction dropped.
figure5  training time against examples seen (`benchmark.py scale`).
figure8, table2    t-SNE maps, density and separation (`geometry.py`); Fashion-MNIST pruned.
puma     PUMA (Maroto & Frossard 2024) as pruning.py reads it, at equal p.
frontier every strategy, and fewer epochs on all data: AutoAttack accuracy against time.
toy      section 5.2's distribution and PUMA's perceptron (`toy_model.py`).
digits, collapse, precision    the built-in digits; how often single-step training collapses, and
         what helps; bfloat16 beside float32.
headline README's line, random pruning and all data: CIFAR-10 at full width. A GPU, or days.
gpu      headline, the GPU's tests and benchmarks; each that ends within the budget is a record.
render   makes what the records in results/ say; it trains nothing.

advprune/studies.py says which runs an experiment needs; experiments share runs. A run lies in
runs/SETUP/ARM-SEED and its record is results/SETUP/ARM-SEED.json. What has a record is not
repeated and an interrupted run is continued, so the same command continues an experiment. --jobs N
does N runs at a time, each with its share of the cores; what they print is in RUN.log.
"""
if __name__ == "__main__":  # before the imports that take long
    from advprune import signals

    signals.die_of_interrupts()

import argparse
import re
import sys
import time
from pathlib import Path

import benchmark
import evaluate
import geometry
import perceptron
import prune
import toy_model
import train
from advprune import cli, files, jobs, locks, recipes, render, runs, studies
from benchmarks import gpu

RESULTS, RUNS = Path("results"), Path("runs")


# --- one run, and its record

def run_arm(run, data_dir, jobs):
    """Train and evaluate this run, unless that is done; its record, which is written too."""
    if found := studies.record(RESULTS, run):
        return found
    folder, trained = RUNS / run.name, train_arm(run, data_dir)
    judged, config = judge(run, run.attack, f"eval-{run.n}", data_dir), runs.config(folder)
    row = {"setup": run.setup, "arm": run.arm, "seed": run.seed, "flags": run.flags, "jobs": jobs,
           "command": f"python train.py {run.flags} --seed {run.seed}",
           **{name: trained.get(name) for name in (  # older runs say less
               "prune", "p", "epoch", "epochs", "n_train", "n_kept", "examples", "clean_accuracy",
               "train_seconds", "prune_seconds", "guard_seconds", "collapses", "weights",
               "segment_seconds")},
           **{name: judged[name] for name in (
               "attack", "n", "robust", "robust_accuracy", "robust_interval", "per_attack")},
           "attack_seconds": judged["seconds"],
           **{name: config.get(name) for name in ("commit", "versions", "device", "threads")}}
    if run.also:
        other = judge(run, run.also, f"eval-{run.also}-{run.n}", data_dir)
        row[run.also] = {name: other[name] for name in (
            "n", "robust", "robust_accuracy", "robust_interval", "seconds")}
    path = RESULTS / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, row)
    return row


def judge(run, attack, name, data_dir):
    """What evaluate.py says of this run, which has ended, under this attack."""
    folder = RUNS / run.name
    verdicts = folder / f"{name}.json"
    if not verdicts.exists():
        evaluate.main([str(folder), "--attack", attack, "--n", str(run.n),
                       "--data-dir", data_dir, "--out", str(verdicts)])
    return runs.read_record(verdicts, "n", "robust", "robust_accuracy", "robust_interval")


def train_arm(run, data_dir):
    """What train.py says of this run, once it has ended."""
    folder, flags = RUNS / run.name, run.flags
    if not (folder / "train.json").exists():
        if "{margins}" in flags:
            eps = recipes.RECIPES[flags.split()[1]]["epsilon"]
            flags = flags.format(margins=measure_margins(run, data_dir), half=eps / 2)
        if runs.resumable(folder):
            train.main(["--resume", str(folder)])
        else:
            train.main([*flags.split(), "--seed", str(run.seed), "--data-dir", data_dir,
                        "--out", str(folder)])
    return runs.read_record(folder / "train.json", "n_kept", "clean_accuracy")


def margins_of(run):
    return RUNS / run.setup / f"margins-{run.seed}" / "scores.npz"


def measure_margins(run, data_dir):
    """The file of the margins under this seed's run on all data."""
    scores, full = margins_of(run), run._replace(arm="full", flags=run.flags.split(" --prune")[0])
    if not scores.exists():
        train_arm(full, data_dir)
        prune.main([str(RUNS / full.name), "--score", "margin", "--data-dir", data_dir,
                    "--out", str(scores.parent)])
    return scores


# --- an experiment

def run_all(name, parts, args):
    """Do what has no record yet of these parts, and print what the records say."""
    wanted = [run for part in parts for run in part.runs(args.seeds)]
    todo = [run for run in wanted if not studies.record(RESULTS, run)]
    todo.sort(key=lambda run: run.seed)  # what is cut off has all arms of some seeds
    if todo:
        cli.if_interrupted(lambda: "the same command continues the study")
        for setup in dict.fromkeys(run.setup for run in todo):
            root = RUNS / setup
            runs.check_below(root / ".lock")
            runs.check_below(RESULTS / setup / "record")
            root.mkdir(parents=True, exist_ok=True)
            locks.lock(root / ".lock", f"the study {root}")
        print(f"{name}: {len(wanted)} runs, {len(wanted) - len(todo)} of them have records",
              file=sys.stderr)
        work(todo, args)
    summaries = {}
    for part in parts:
        rows = [studies.record(RESULTS, run) for run in part.runs(args.seeds)]
        summaries[part.setup] = studies.summary(rows)
        report(part, summaries[part.setup])
    return {"experiment": name, "runs": len(wanted), "summary": summaries}


def work(todo, args):
    """These runs, one after another or side by side; says after each how many are left."""
    start, total = time.monotonic(), len(todo)
    for done, (run, row) in enumerate(finished(todo, args), 1):
        minutes = (time.monotonic() - start) / done * (total - done) / 60
        print(f"{run.setup}, {run.arm}, seed {run.seed}: robust accuracy "
              f"{row['robust_accuracy']:.4f}; {done} runs done, {total - done} left, about "
              f"{minutes:.0f} minutes", file=sys.stderr)


def finished(todo, args):
    """(run, its record) of each of these runs, as they are done."""
    if args.jobs == 1:
        for run in todo:
            yield run, run_arm(run, args.data_dir, 1)
        return
    todo, running = list(todo), set()
    with jobs.Workers(min(args.jobs, len(todo)), run_arm) as workers:
        while todo or running:
            for run in list(todo):
                if workers.idle and may_begin(run, running):
                    todo.remove(run)
                    running.add(run)
                    workers.start(run, RUNS / f"{run.name}.log", run, args.data_dir, args.jobs)
            for run, row in workers.finished():
                running.remove(run)
                yield run, row


def may_begin(run, running):
    """Whether no other run makes what this one needs: the run on all data, and its margins."""
    if "{margins}" not in run.flags or margins_of(run).exists():
        return True
    return not any((other.setup, other.seed) == (run.setup, run.seed) and
                   ("{margins}" in other.flags or other.arm == "full") for other in running)


def report(part, table):
    print(f"{part.setup}, n = {part.n}\n{'arm':24}  seeds  clean             robust")
    for arm, row in table.items():
        cells = (f"{row[name]:.4f} +- {row[f'{name}_std'] or 0:.4f}"
                 for name in ("clean_accuracy", "robust_accuracy"))
        print(f"{arm:24}  {row['seeds']:5}  {'  '.join(cells)}")


# --- experiments of one record each

def by_script(name, script, words, made=None):
    """Make results/NAME.json by this script, unless it is there; returns where it is.

    The script writes a folder with the file `made`, or, without it, the record itself.
    """
    path = RESULTS / f"{name}.json"
    if path.exists():
        print(f"{path} is there", file=sys.stderr)
        return str(path)
    runs.check_below(path)
    path.parent.mkdir(exist_ok=True)
    if made:
        folder = RUNS / name
        if not folder.exists():
            script.main([*words, "--out", str(folder)])
        files.write(path, (folder / made).read_text())
    else:
        script.main([*words, "--json", str(path)])
    return str(path)


def scale(args):
    return by_script("cpu-scale", benchmark, ["scale", "--dataset", "mnist", "--data-dir",
                                              args.data_dir])


def statistics(args):
    pruned = studies.Part("mnist-robust", ("low+high-0.4",), studies.LEAST, 1).runs()
    if not (RESULTS / "geometry.json").exists():
        for run in pruned:
            train_arm(run, args.data_dir)
    return by_script("geometry", geometry, [
        "mnist", "fashion-mnist", "cifar10", "--readings", "--data-dir", args.data_dir, *(
            word for run in pruned for word in ("--pruned", str(RUNS / run.name / "scores.npz"))
        )], "geometry.json")


def toy(args):
    return [by_script("toy-model", toy_model, [], "toy_model.json"),
            by_script("perceptron", perceptron, [], "perceptron.json")]


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


@cli.script
def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    names = list(dict.fromkeys([*studies.EXPERIMENTS, *SCRIPTS]))
    flag("experiment", choices=[*names, "all", "gpu", "render"])
    flag("--dataset", choices=list(dict.fromkeys(
        part.dataset for parts in studies.EXPERIMENTS.values() for part in parts)),
         help="only the runs on this data set (all)")
    flag("--seeds", type=seeds, help="how many, from seed 0 on, or FIRST-LAST (as the tables)")
    flag("--n-eval", type=cli.positive_int, metavar="N",
         help="attack the first N test images (as the tables)")
    flag("--arms", metavar="A,B", help="only these arms (all)")
    flag("--jobs", type=cli.positive_int, default=1, help="how many runs at a time, each with its "
         "share of the cores (1)")
    flag("--budget", type=cli.number(float, 1), default=600, help="seconds for gpu (600)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    args = parser.parse_args(argv)
    if args.experiment == "render":
        return {"written": render.render(runs.CHECKOUT)}
    args.data_dir = str(Path(args.data_dir).resolve())
    if args.experiment == "gpu":
        return gpu.records(args)
    chosen = names if args.experiment == "all" else [args.experiment]
    parts = {name: parts_of(name, args) for name in chosen}
    if (args.dataset or args.arms) and not any(parts.values()):
        parser.error(f"{args.experiment} has no such runs")
    results = []
    for name in chosen:
        if parts[name]:
            results.append(run_all(name, parts[name], args))
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
    main()
