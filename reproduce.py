"""The papers' studies: the runs behind them, then tables and pictures.

    python reproduce.py puma mnist              two CPU cores, about an hour
    python reproduce.py puma cifar10-narrow     two CPU cores, about an hour
    python reproduce.py puma cifar10            a GPU

puma     Maroto & Frossard 2024, as prune.py and train.py read it: at equal p, random pruning, the
         highest margins dropped (keep-hard), the lowest (keep-easy), and PUMA, beside all data;
         puma-floor leaves no budget below half of the full one. The margin model is the run on
         all data of the same seed.

Runs go to runs/STUDY-NAME; one that is there is not run again, one cut off is gone on with. So an
interrupted study goes on with the same command, and a record that is there gains what is missing.
Writes results/STUDY-NAME.json and figures/STUDY-NAME.png.
"""
import json
import shutil
from pathlib import Path

import numpy as np

import evaluate
import prune
import train
from advprune import cli, plots, recipes, runs

RECIPES = {  # of the study of PUMA
    # Not RS+FGSM: at eps 0.3 one seed in three overfits to its single step, and hides the rest.
    "mnist": "--dataset mnist --attack pgd --pgd-steps 5 --alpha 0.1 --epochs 5",
    "cifar10-narrow": "--dataset cifar10 --limit 10000 --width 4 --epochs 8",
    "cifar10": "--dataset cifar10",
}
ARMS = {"full": [], "random": ["--prune", "random"], "keep-hard": ["--prune", "high"],
        "puma": ["--prune", "puma"], "puma-floor": ["--prune", "puma"],
        "keep-easy": ["--prune", "low"]}


def run_arm(root, arm, seed, args):
    """Train and evaluate one arm of one seed under root, unless that is done; its row."""
    folder, flags = root / f"{arm}-{seed}", RECIPES[args.name].split()
    if arm != "full":
        flags += [*ARMS[arm], "--p", str(args.p), "--epoch", "0"]
    if arm not in ("full", "random"):
        scores = root / f"margins-{seed}" / "scores.npz"
        if not scores.exists():
            shutil.rmtree(scores.parent, ignore_errors=True)  # cut off before it was written
            prune.main([str(root / f"full-{seed}"), "--score", "margin", "--out",
                        str(scores.parent)])
        flags += ["--scores", str(scores)]
    if arm == "puma-floor":
        recipe = recipes.RECIPES[args.name.removesuffix("-narrow")]
        flags += ["--eps-floor", str(recipe["epsilon"] / 2)]
    if (folder / "state.pt").exists() and not (folder / "train.json").exists():
        train.main(["--resume", str(folder)])
    elif not (folder / "train.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # cut off in its first epoch
        train.main([*flags, "--seed", str(seed), "--data-dir", args.data_dir,
                    "--out", str(folder)])
    if not (folder / "eval.json").exists():
        evaluate.main([str(folder), "--attack", "autoattack", "--n", str(args.n), "--out",
                       str(folder / "eval.json")])
    trained, judged = (json.loads((folder / name).read_text())
                       for name in ("train.json", "eval.json"))
    if judged["n"] != args.n or trained["p"] not in (args.p, 0):
        raise cli.UserError(f"{folder} is of another --p or --n; move {root} first")
    config = runs.config(folder)
    return {"arm": arm, "seed": seed, "n_kept": trained["n_kept"], "n": judged["n"],
            "clean_accuracy": trained["clean_accuracy"],
            "robust_accuracy": judged["robust_accuracy"],
            "robust_interval": judged["robust_interval"],
            "train_seconds": trained["train_seconds"],
            **{name: config[name] for name in ("command", "commit", "device")}}


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
    print(f"{'arm':10}  seeds  clean            AutoAttack")
    for arm, row in table.items():
        cells = (f"{row[name]:.4f} +- {row[f'{name}_std'] or 0:.4f}"
                 for name in ("clean_accuracy", "robust_accuracy"))
        print(f"{arm:10}  {row['seeds']:5}  {'  '.join(cells)}")


@cli.script
def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("study", choices=["puma"])
    flag("name", choices=list(RECIPES), help="which data and network")
    flag("--p", type=cli.fraction, default=0.3, help="fraction to drop (0.3)")
    flag("--seeds", type=cli.positive_int, default=3, help="how many (3)")
    flag("--n", type=cli.positive_int, default=500, help="test images to attack (500)")
    flag("--arms", default=",".join(ARMS), help=f"of {','.join(ARMS)} (all)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    args = parser.parse_args(argv)
    arms = args.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"--arms: {unknown[0]!r} is none of {', '.join(ARMS)}")
    label = f"{args.study}-{args.name}"
    root, record = Path("runs") / label, Path("results") / f"{label}.json"
    settings = {"p": args.p, "n": args.n}
    old = json.loads(record.read_text()) if record.exists() else {"settings": settings, "rows": []}
    if old["settings"] != settings:
        raise cli.UserError(f"{record} and {root} are of another --p or --n; move them first")
    rows = {(row["seed"], list(ARMS).index(row["arm"])): row for row in old["rows"]}
    for seed in range(args.seeds):
        for arm in ["full", *(arm for arm in arms if arm != "full")]:
            rows[seed, list(ARMS).index(arm)] = run_arm(root, arm, seed, args)
            ordered = [rows[key] for key in sorted(rows)]
            result = {"study": label, "settings": settings, "summary": summary(ordered),
                      "rows": ordered}
            record.parent.mkdir(exist_ok=True)
            runs.write_json(record, {"command": cli.command("reproduce.py", argv), **result,
                                     **runs.environment(cli.device(None))})
    Path("figures").mkdir(exist_ok=True)
    runs.write_figure(Path("figures") / f"{label}.png",
                      plots.study(ordered, f"{args.name}, p = {args.p:g}"))
    report(result["summary"])
    return result


if __name__ == "__main__":
    main()
