"""reproduce.py gpu: everything for results/, on a machine with a card."""
import json
import subprocess
import sys
import time

from advprune import cli, files, runs, studies


def records(args):
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
        "cifar10-high-0.4": [*cifar, f"{stamp}-high", *studies.ARMS["high-0.4"].split()],
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
