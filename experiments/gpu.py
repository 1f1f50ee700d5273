"""python -m experiments gpu: everything for results/, on a machine with a card."""
import json
import subprocess
import sys
import time

from advprune import console, files
from advprune.errors import UserError
from advprune.run import CHECKOUT, environment


def records(args):
    """README's line and its two companions, the gpu tests, the benchmarks; a record of each step.

    Each step gets what is left of the budget [s] and is ended there. What came before stays, and
    so do the records of steps for which no time is left. The trainings have records of their own,
    and go on with the next call.
    """
    device = console.device(None)
    if device.type != "cuda":
        raise UserError("gpu needs a CUDA GPU; here, `python -m benchmarks kernels` works")
    end, place = time.monotonic() + args.budget, ["--data-dir", args.data_dir]
    steps = {
        "headline": ["-m", "experiments", "headline", *place],
        "tests": ["-m", "pytest", "-m", "gpu", "tests"],
        "ablation": ["-m", "benchmarks", "ablation", *place],
        "kernels": ["-m", "benchmarks", "kernels"]}
    finished = {}
    for name, command in steps.items():
        if (left := end - time.monotonic()) <= 0:
            finished[name] = "no time left"
            continue
        record = {"command": " ".join(["python", *command]), **environment(device)}
        try:
            done = subprocess.run([sys.executable, *command], cwd=CHECKOUT, text=True,
                                  stdout=subprocess.PIPE, timeout=left)
        except subprocess.TimeoutExpired:
            record["cut_off"] = True
            finished[name] = "cut off"
        else:
            last = (done.stdout.strip().splitlines() or [""])[-1]
            record["exit_code"] = finished[name] = done.returncode
            record["result"] = json.loads(last) if last.startswith("{") else last
        files.write_json(CHECKOUT / "results" / f"gpu-{name}.json", record)
        print(f"{name}: {finished[name]}, {end - time.monotonic():.0f} s left", file=sys.stderr)
    return finished
