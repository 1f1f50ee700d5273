"""The papers' studies: the runs behind them, then tables and pictures.

    python reproduce.py pruning digits          two CPU cores, half an hour
    python reproduce.py collapse mnist --seeds 10   two CPU cores, an hour
    python reproduce.py precision cifar10-narrow    two CPU cores, half an hour
    python reproduce.py puma mnist              two CPU cores, an hour
    python reproduce.py puma cifar10-narrow     two CPU cores, an hour
    python reproduce.py puma cifar10            a GPU
    python reproduce.py gpu [--budget SECONDS]  a GPU: `make gpu-records`
    python reproduce.py render                  the tables of README and docs/, and figures/

pruning  AutoAttack accuracy against the fraction dropped: random and high-loss pruning (Kaufmann
         et al. 2022, Figure 2), beside all data and an undefended network.
collapse How often single-step training collapses, and what the remedies do: the recipes paper and
         robust, --on-collapse rollback, a smaller step. PGD-50-10 on 1,000 test images.
precision Training in float32 and in bfloat16, on a narrow network. PGD-50-10.
puma     PUMA (Maroto & Frossard 2024) as pruning.py reads it: at equal p, random pruning, the
         highest margins dropped (keep-hard), the lowest (keep-easy), and PUMA, beside all data;
         puma-floor leaves no budget below half of the full one. The margin model is the run on
         all data of the same seed.
gpu      the GPU's tests and benchmarks, and CIFAR-10 trained and attacked; each step that ends
         within the budget is a record results/gpu-*.json.
render   makes what the records in results/ say; it trains nothing.

Runs go to runs/STUDY-NAME. A finished run is not repeated and an interrupted one is continued, so
the same command continues an interrupted study. A study writes results/STUDY-NAME.json. --jobs N
does N runs at a time, each with its share of the cores; what they print is in RUN.log.
"""
if __name__ == "__main__":  # before the imports that take long
    from advprune import signals

    signals.die_of_interrupts()

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import evaluate
import prune
import train
from advprune import cli, files, jobs, locks, recipes, runs, tables


class Study(NamedTuple):
    flags: str  # of train.py, for all arms
    arms: dict  # name -> further flags; {margins}: the scores under this seed's run on all data
    n: int  # test images to attack
    attack: str = "autoattack"


PRUNING = {"full": "", "undefended": "--attack none",
           **{f"{how}-{p}": f"--prune {how} --p {p} --epoch 3"
              for p in (0.2, 0.4, 0.6, 0.8) for how in ("random", "high")}}
PUMA = {"full": "", "random": "--prune random --p 0.3 --epoch 0",
        "keep-hard": "--prune high --p 0.3 --scores {margins}",
        "puma": "--prune puma --p 0.3 --scores {margins}",
        "puma-floor": "--prune puma --p 0.3 --scores {margins} --eps-floor {floor}",
        "keep-easy": "--prune low --p 0.3 --scores {margins}"}
COLLAPSE = {"paper": "", "robust": "--recipe robust", "rollback": "--on-collapse rollback",
            "small step": "--alpha 0.2"}
STUDIES = {
    ("collapse", "mnist"): Study("--dataset mnist", COLLAPSE, 1000, "pgd"),
    ("precision", "cifar10-narrow"): Study(
        "--dataset cifar10 --limit 10000 --width 8 --epochs 5 --attack n-fgsm",
        {"fp32": "", "bf16": "--precision bf16"}, 200, "pgd"),
    ("pruning", "digits"): Study("--dataset digits", PRUNING, 200),
    # Not RS+FGSM: at eps 0.3 it collapses on some seeds, which would hide the rest.
    ("puma", "mnist"): Study("--dataset mnist --attack pgd --pgd-steps 5 --alpha 0.1 --epochs 5",
                             PUMA, 500),
    ("puma", "cifar10-narrow"): Study("--dataset cifar10 --limit 10000 --width 4 --epochs 8",
                                      PUMA, 500),
    ("puma", "cifar10"): Study("--dataset cifar10", PUMA, 500),
}


# --- a study: its runs and its record

def run_folder(root, arm, seed):
    return root / f"{arm.replace(' ', '-')}-{seed}"


def is_done(root, seed, arm):
    return (run_folder(root, arm, seed) / "eval.json").exists()


def run_arm(root, study, arm, seed, args):
    """Train and evaluate one arm of one seed under root, unless that is done; its row."""
    folder, flags = run_folder(root, arm, seed), f"{study.flags} {study.arms[arm]}"
    scores = root / f"margins-{seed}" / "scores.npz"
    if "{margins}" in flags and not scores.exists():
        prune.main([str(root / f"full-{seed}"), "--score", "margin", "--out", str(scores.parent)])
    if not (folder / "train.json").exists():
        if runs.resumable(folder):
            train.main(["--resume", str(folder)])
        else:
            dataset = flags.split()[1]
            flags = flags.format(margins=scores, floor=recipes.RECIPES[dataset]["epsilon"] / 2)
            train.main([*flags.split(), "--seed", str(seed), "--data-dir", args.data_dir,
                        "--out", str(folder)])
    if not (folder / "eval.json").exists():
        evaluate.main([str(folder), "--attack", study.attack, "--n", str(args.n), "--out",
                       str(folder / "eval.json")])
    trained = runs.read_record(folder / "train.json", "n_kept", "clean_accuracy")
    judged = runs.read_record(folder / "eval.json", "n", "robust_accuracy", "robust_interval")
    if judged["n"] != args.n:
        raise cli.UserError(f"{folder} is of another --n; move {root} first")
    config = runs.config(folder)
    return {"arm": arm, "seed": seed,
            **{name: trained[name] for name in ("prune", "p", "n_train", "n_kept", "examples")},
            "n": judged["n"], "clean_accuracy": trained["clean_accuracy"],
            "robust_accuracy": judged["robust_accuracy"],
            "robust_interval": judged["robust_interval"],
            **{name: trained[name] for name in ("train_seconds", "guard_seconds", "collapses")},
            **{name: config.get(name) for name in ("command", "commit", "device", "threads")}}


def run_study(args, argv):
    """All arms of all seeds; the record is written anew after each."""
    study, label = STUDIES[args.study, args.name], f"{args.study}-{args.name}"
    args.n = args.n or study.n
    arms = args.arms.split(",") if args.arms else list(study.arms)
    if unknown := [arm for arm in arms if arm not in study.arms]:
        raise cli.UserError(f"--arms: {unknown[0]!r} is none of {', '.join(study.arms)}")
    if any("{margins}" in study.arms[arm] for arm in arms):  # of the run on all data
        arms = list(dict.fromkeys([next(iter(study.arms)), *arms]))
    root, record = Path("runs") / label, Path("results") / f"{label}.json"
    for path in (root / ".lock", record):
        runs.check_below(path)
    for folder in (root, record.parent):
        folder.mkdir(parents=True, exist_ok=True)
    cli.if_interrupted(lambda: "the same command continues the study")
    locks.lock(root / ".lock", f"the study {root}")
    old = (runs.read_record(record, "n", "rows") if record.exists()
           else {"n": args.n, "rows": []})
    if old["n"] != args.n:
        raise cli.UserError(f"{record} and {root} are of another --n; move them first")
    rows = {(row["seed"], row["arm"]): row for row in old["rows"]}
    order, result = list(study.arms), {}
    keys = [(seed, arm) for seed in range(args.seeds) for arm in arms]
    before = {key: rows[key].get("jobs") for key in keys if key in rows and is_done(root, *key)}
    for key, row in done_runs(root, study, keys, args):
        rows[key] = {**row, "jobs": before.get(key, args.jobs)}  # times depend on it
        ordered = sorted(rows.values(), key=lambda row: (row["seed"], order.index(row["arm"])))
        result = {"study": label, "n": args.n, "summary": summary(ordered), "rows": ordered}
        files.write_json(record, {"command": cli.command("reproduce.py", argv), **result,
                                 **runs.environment(cli.device(None))})
    report(result["summary"])
    return result


def done_runs(root, study, keys, args):
    """((seed, arm), row) of each of these runs, as they are done."""
    if args.jobs == 1:
        for seed, arm in keys:
            yield (seed, arm), run_arm(root, study, arm, seed, args)
        return
    finished = [key for key in keys if is_done(root, *key)]
    for seed, arm in finished:
        yield (seed, arm), run_arm(root, study, arm, seed, args)
    todo = [key for key in keys if key not in finished]
    if not todo:
        return
    start, running, total, left = time.monotonic(), set(), len(todo), len(todo)
    with jobs.Workers(min(args.jobs, total), run_arm) as workers:
        while left:
            for seed, arm in list(todo):
                if workers.idle and may_begin(root, study, seed, arm, running):
                    todo.remove((seed, arm))
                    running.add((seed, arm))
                    log = root / f"{run_folder(root, arm, seed).name}.log"
                    workers.start((seed, arm), log, root, study, arm, seed, args)
            for key, row in workers.finished():
                running.remove(key)
                left -= 1
                minutes = (time.monotonic() - start) / (total - left) * left / 60
                print(f"{key[1]}, seed {key[0]}: robust accuracy {row['robust_accuracy']:.4f}; "
                      f"{total - left} runs done, {left} left, about {minutes:.0f} minutes",
                      file=sys.stderr)
                yield key, row


def may_begin(root, study, seed, arm, running):
    """Whether the margins that an arm needs are there, or it may measure them itself."""
    if "{margins}" not in study.arms[arm] or (root / f"margins-{seed}" / "scores.npz").exists():
        return True
    first = next(iter(study.arms))
    return is_done(root, seed, first) and not any(
        other == seed and "{margins}" in study.arms[name] for other, name in running)


def summary(rows):
    """For each arm: how many seeds, and mean and standard deviation of both accuracies."""
    table = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        table[arm] = {"seeds": len(mine)}
        for name in ("clean_accuracy", "robust_accuracy"):
            values = [row[name] for row in mine]
            table[arm][name] = float(np.mean(values))
            table[arm][f"{name}_std"] = float(np.std(values, ddof=1)) if len(mine) > 1 else None
    return table


def report(table):
    print(f"{'arm':10}  seeds  clean            robust")
    for arm, row in table.items():
        cells = (f"{row[name]:.4f} +- {row[f'{name}_std'] or 0:.4f}"
                 for name in ("clean_accuracy", "robust_accuracy"))
        print(f"{arm:10}  {row['seeds']:5}  {'  '.join(cells)}")


# --- everything for results/, on a machine with a card

def gpu(args):
    """The gpu tests, the benchmarks, CIFAR-10 trained and attacked, each a results/gpu-*.json.

    Each step gets what is left of the budget [s] and is ended there; what came before stays.
    """
    device = cli.device(None)
    if device.type != "cuda":
        raise cli.UserError("gpu needs a CUDA GPU; here, benchmark.py kernels works")
    end, place = time.monotonic() + args.budget, ["--data-dir", args.data_dir]
    cifar = ["train.py", "--dataset", "cifar10", *place, "--out"]
    stamp = time.strftime("runs/gpu-%Y%m%d-%H%M%S")
    attack = ["--attack", "autoattack", "--n", "1000"]
    steps = {
        "tests": ["-m", "pytest", "-m", "gpu", "tests"],
        "ablation": ["benchmark.py", "ablation", *place],
        "kernels": ["benchmark.py", "kernels"],
        "cifar10-full": [*cifar, f"{stamp}-full"],
        "cifar10-full-autoattack": ["evaluate.py", f"{stamp}-full", *attack],
        "cifar10-high-0.4": [*cifar, f"{stamp}-high", *PRUNING["high-0.4"].split()],
        "cifar10-high-0.4-autoattack": ["evaluate.py", f"{stamp}-high", *attack]}
    finished = {}
    for name, command in steps.items():
        record = {"command": " ".join(["python", *command]), **runs.environment(device)}
        try:
            done = subprocess.run([sys.executable, *command], cwd=runs.CHECKOUT, text=True,
                                  stdout=subprocess.PIPE, timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            record["cut_off"] = True
            finished[name] = "cut off"
        else:
            last = (done.stdout.strip().splitlines() or [""])[-1]
            record["exit_code"] = finished[name] = done.returncode
            record["result"] = json.loads(last) if last.startswith("{") else last
        files.write_json(runs.CHECKOUT / "results" / f"gpu-{name}.json", record)
        print(f"{name}: {finished[name]}, {end - time.monotonic():.0f} s left", file=sys.stderr)
    return finished


@cli.script
def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("study", choices=[*dict.fromkeys(study for study, _ in STUDIES), "gpu", "render"])
    flag("name", nargs="?", choices=list(dict.fromkeys(name for _, name in STUDIES)),
         help="of a study: which data and network")
    flag("--seeds", type=cli.positive_int, default=3, help="how many, from seed 0 on (3)")
    flag("--n", type=cli.positive_int, help="the first N test images are attacked (200 or 500)")
    flag("--arms", metavar="A,B", help="only these arms of the study (all)")
    flag("--jobs", type=cli.positive_int, default=1, help="of a study: how many runs at a time, "
         "each with its share of the cores (1)")
    flag("--budget", type=cli.number(float, 1), default=600, help="seconds for gpu (600)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    args = parser.parse_args(argv)
    if args.study == "render":
        return {"written": tables.render(runs.CHECKOUT)}
    args.data_dir = str(Path(args.data_dir).resolve())
    if args.study == "gpu":
        return gpu(args)
    if (args.study, args.name) not in STUDIES:
        names = [name for study, name in STUDIES if study == args.study]
        parser.error(f"{args.study} is a study of {' or '.join(names)}; name one")
    return run_study(args, argv)


if __name__ == "__main__":
    main()
