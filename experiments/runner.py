"""The runs of an experiment: trained and evaluated, one after another or side by side."""
import contextlib
import sys
import time
from pathlib import Path

import evaluate
import prune
import train
from advprune import config, console, data, files, own_code
from advprune.errors import UserError
from advprune.run import new_folder, read_config
from benchmarks.workers import Workers
from experiments import labels, studies
from experiments.studies import HALF, MARGINS

RESULTS, RUNS = Path("results"), Path("runs")
DATA = ("dataset", "limit", "image_size", "skip_bad", "extra_data")  # which data


# --- one run, and its record

def run_arm(run, data_dir, jobs):
    """Train and evaluate this run, as far as that is not done; write and return its record."""
    setup = run.how
    folder, trained = RUNS / run.name, train_arm(run, data_dir)
    judged = judge(run, setup.attack, run.n, f"eval-{run.n}", data_dir)
    of_run = read_config(folder)
    row = {"setup": run.setup, "arm": run.arm, "seed": run.seed, "flags": run.flags, "jobs": jobs,
           "command": f"python train.py {run.flags} --seed {run.seed}",
           "prune": own_code.short(trained["prune"]),
           **{name: trained[name] for name in (
               "p", "epoch", "epochs", "n_train", "n_kept", "examples", "first_examples",
               "clean_accuracy", "progress", "train_seconds", "first_seconds", "prune_seconds",
               "guard_seconds", "collapses", "weights", "segment_seconds")},
           **labels.wrong(folder, data_dir),
           "wanted": run.n,  # images, of which there may be fewer
           **{name: judged[name] for name in (
               "attack", "n", "robust", "robust_accuracy", "robust_interval", "per_attack")},
           "attack_seconds": judged["seconds"],
           "by_class": {row["class"]: [row["clean_accuracy"], row["robust_accuracy"]]
                        for row in judged["by_class"]},
           "data": of_run["data"],
           "own": run.digests() | {flag: code["sha256"] for flag, code in of_run["own"].items()},
           **{name: of_run[name] for name in ("commit", "versions", "device", "threads")}}
    if setup.also:
        n = setup.also_n or run.n
        other = judge(run, setup.also, n, f"eval-{setup.also}-{n}", data_dir)
        row[setup.also] = {"wanted": n, **{name: other[name] for name in (
            "n", "robust", "robust_accuracy", "robust_interval", "seconds")}}
    path = RESULTS / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, row)
    return row


def judge(run, attack, n, name, data_dir):
    """What evaluate.py says of this run, which has ended, under this attack on n images."""
    folder = RUNS / run.name
    return evaluate.main([str(folder), "--attack", attack, "--n", str(n), "--data-dir",
                          data_dir, "--out", str(folder / f"{name}.json")])


def train_arm(run, data_dir):
    """What train.py says of this run, once it has ended."""
    settings = studies.resolved(run.settings, run.file)
    if settings.get("scores") == MARGINS:
        settings["scores"] = measure_margins(run, data_dir)
    if settings.get("eps_floor") == HALF:
        settings["eps_floor"] = config.RECIPES[settings["dataset"]]["epsilon"] / 2
    if "labels" in settings:
        settings["labels"] = labels.file_of(settings, run.seed, RUNS / run.setup, data_dir)
    return train.main([*studies.flags(settings), "--seed", str(run.seed), "--data-dir", data_dir,
                       "--out", str(RUNS / run.name)])


def margins_of(run):
    return RUNS / run.setup / f"margins-{run.seed}" / "scores.npz"


def measure_margins(run, data_dir):
    """The file of the margins under this seed's run on all data."""
    scores, full = margins_of(run), run._replace(arm="full")
    if not scores.exists():
        train_arm(full, data_dir)
        prune.main([str(RUNS / full.name), "--score", "margin", "--data-dir", data_dir,
                    "--out", str(scores.parent)])
    return scores


# --- an experiment

def run_all(name, parts, args):
    """Do what has no record yet of these parts, or all again; print what the records say."""
    wanted: dict = {}
    for run in (run for part in parts for run in part.runs(args.seeds)):
        if run.name not in wanted or run.n > wanted[run.name].n:  # parts share runs
            wanted[run.name] = run
    known = {} if args.again else {
        run: row for run in wanted.values() if (row := studies.record(RESULTS, run))}
    check_data(known, args.data_dir)
    todo = [run for run in wanted.values() if run not in known]
    todo.sort(key=lambda run: run.seed)  # what is cut off has all arms of some seeds
    if todo:
        print(f"{name}: {len(wanted)} runs, {len(known)} of them have records",
              file=sys.stderr)
        with contextlib.ExitStack() as held:
            held.enter_context(console.if_interrupted(
                lambda: "the same command continues the study"))
            for setup in sorted({run.setup for run in todo}):
                root = RUNS / setup
                root.mkdir(parents=True, exist_ok=True)
                held.enter_context(files.locked(root / ".lock", f"the study {root}"))
            for run in todo:
                set_aside(run)
            work(todo, args)
    else:
        print(f"{name}: nothing was run: {len(wanted)} stored records", file=sys.stderr)
    summaries = {}
    for part in parts:
        rows = [studies.record(RESULTS, run) for run in part.runs(args.seeds)]
        summary = studies.summary(rows)
        summaries[part.setup if part.name == name else part.name] = summary
        report(part, rows[0]["n"], summary)
    return {"experiment": name, "runs": len(wanted), "summary": summaries}


def check_data(known, data_dir):
    """Raise UserError if a record of `known`, of these runs, is of other data than are there now.

    What is not there is not compared, and of a run with `labels` only the test part is.
    """
    now = {}  # flags that say which data -> the checksums
    for run, row in known.items():
        settings = run.settings
        below = data.TORCHVISION.get(settings["dataset"], ("", ""))[1]
        if "data" not in row or not Path(data_dir, below).exists():  # earlier records have none
            continue
        flags = tuple(studies.flags({name: settings[name] for name in DATA if name in settings}))
        if flags not in now:
            dataset = data.of_run(config.settings(studies.PARSER.parse_args(flags)), data_dir)
            now[flags] = {part: dataset.checksum(part) for part in row["data"]}
        for part in ["test"] if "labels" in settings else ["train", "test"]:
            if row["data"][part] != now[flags][part]:
                raise UserError(f"{RESULTS / run.name}.json is of other data than {data_dir} has "
                                "now; give the folder of the same data as --data-dir, or move "
                                "the record and the run's folder away")


def set_aside(run):
    """Make room for a run that has a record already: a finished one is renamed to RUN-2.

    One that was cut off goes on. The record stays until the new one replaces it.
    """
    if not studies.record(RESULTS, run):
        return
    ends = [RUNS / run.name / "train.json", *[margins_of(run)] * (run.arm == "full")]
    for folder in (path.parent for path in ends if path.exists()):
        folder.rename(new_folder(str(folder)))


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
    with Workers(min(args.jobs, len(todo)), run_arm) as workers:
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
    if not needs_margins(run) or margins_of(run).exists():
        return True
    return not any((other.setup, other.seed) == (run.setup, run.seed) and
                   (needs_margins(other) or other.arm == "full") for other in running)


def needs_margins(run):
    return run.settings.get("scores") == MARGINS


def report(part, n, table):
    print(f"{part.setup}, n = {n}\n{'arm':24}  seeds  clean             robust")
    for arm, row in table.items():
        cells = f"{arm:24}  {row['seeds']:5}"
        for name in ("clean_accuracy", "robust_accuracy"):
            deviation = row[f"{name}_std"]  # None for one seed
            cell = f"{row[name]:.4f}" + (f" +- {deviation:.4f}" if deviation is not None else "")
            cells += f"  {cell:16}"
        print(cells.rstrip())
