"""What the kernels are worth: operators, the scoring epoch and the training step, in ratios.

    python benchmark.py kernels [--json FILE] [--figure FILE.png]
    python benchmark.py scoring | training
    python benchmark.py records --budget 600      (what `make gpu-records` runs, on a CUDA machine)

Medians of several runs in one process, beside a copy timed in the same process and the named
alternatives: eager torch as fast_adversarial writes it, torch.compile of the same lines, and for
selection torch.topk, torch.sort and numpy.argpartition. GB/s are counted from numel and
element_size of what an operator must read and write; `of copy` is its share of the copy's GB/s.
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import attacks
import data
import models
import ops
import prune
import runs

BATCHES = [(128, 3, 32, 32), (512, 1, 28, 28), (2048, 3, 32, 32), (20834, 3, 32, 32)]  # to 64 M
SELECTIONS = [50_000, 1_000_000, 10_000_000, 100_000_000]
EPS, ALPHA = 8 / 255, 10 / 255


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def median_us(call, device, seconds=0.5):
    """The median time of a call in microseconds; at least 5 calls, after 2 to warm up."""
    times, end = [], None
    while len(times) < 7 or time.perf_counter() < end:
        sync(device)
        start = time.perf_counter()
        call()
        sync(device)
        times.append((time.perf_counter() - start) * 1e6)
        end = end or time.perf_counter() + seconds
    return float(np.median(times[2:]))


def size_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


# --- the alternatives: fast_adversarial's lines, as eager torch and compiled

def eager_start(x):
    return x + torch.empty_like(x).uniform_(-EPS, EPS)


def eager_step(x, start, grad):
    delta = torch.clamp(start - x + ALPHA * torch.sign(grad), -EPS, EPS)
    return torch.clamp(x + delta, 0, 1)


def eager_both(x, grad):
    return eager_step(x, eager_start(x), grad)


def eager_scores(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(1) == labels


def eager_deepfool(grads, logits, labels):
    rows = torch.arange(len(labels), device=labels.device)
    slopes = (grads - grads[rows, labels][:, None]).flatten(2)
    away = (logits - logits[rows, labels][:, None]).abs() / slopes.abs().sum(2)
    away, target = away.nan_to_num(torch.inf, torch.inf).min(1)
    return slopes[rows, target].sign() * away[:, None], target


def rows_of_batches(device):
    """One row an operator and size: its time and bytes, and its alternatives' times."""
    largest = 0.5 * (torch.cuda.get_device_properties(device).total_memory
                     if device.type == "cuda" else 4e9)
    compiled_both, compiled_deepfool = torch.compile(eager_both), torch.compile(eager_deepfool)
    for shape in [s for s in BATCHES if 16 * np.prod(s) < largest]:
        x, ids = torch.rand(shape, device=device), torch.arange(shape[0], device=device)
        grad, images = torch.randn_like(x), (x * 255).to(torch.uint8)
        logits, labels = torch.randn(shape[0], 10, device=device), ids % 10
        copy = size_of(x, x) / median_us(x.clone, device)
        start = ops.rs_start(x, ids, EPS, 0, 0)
        calls = {
            "rs_start": (lambda: ops.rs_start(x, ids, EPS, 0, 0), size_of(x, start),
                         {"eager": lambda: eager_start(x)}),
            "fgsm_step": (lambda: ops.fgsm_step(x, grad, ids, EPS, ALPHA, 0, 0),
                          size_of(x, grad, x), {"eager": lambda: eager_step(x, start, grad)}),
            "rs_start + fgsm_step": (
                lambda: (ops.rs_start(x, ids, EPS, 0, 0),
                         ops.fgsm_step(x, grad, ids, EPS, ALPHA, 0, 0)),
                size_of(x, start, x, grad, x),
                {"eager": lambda: eager_both(x, grad), "compile": lambda: compiled_both(x, grad)}),
            "augment": (lambda: ops.augment(images, ids, 0, 0, 4, True), size_of(images, x),
                        {"reference": lambda: ops.REFERENCES["augment"](images, ids, 0, 0, 4, True,
                                                                        False)}),
            "cross_entropy_scores": (lambda: ops.cross_entropy_scores(logits, labels),
                                     size_of(logits, labels) + 5 * len(ids),
                                     {"eager": lambda: eager_scores(logits, labels)}),
        }
        if 60 * np.prod(shape) < largest:  # the gradients of ten classes
            grads = torch.randn(10, *shape, device=device).transpose(0, 1)
            calls["deepfool_step"] = (
                lambda: ops.deepfool_step(grads, logits, labels, "linf"), size_of(grads, x),
                {"eager": lambda: eager_deepfool(grads, logits, labels),
                 "compile": lambda: compiled_deepfool(grads, logits, labels)})
        for name, (call, moved, others) in calls.items():
            yield row_of(name, x.numel(), call, moved, others, copy, device)


def rows_of_selections(device):
    for n in SELECTIONS:
        scores, drop = torch.randn(n, device=device).exp(), n * 2 // 5
        others = {"topk": lambda s=scores, k=drop: torch.topk(s, k, sorted=False)}
        if n <= 10_000_000:
            others["sort"] = lambda s=scores: torch.sort(s)
            host = scores.cpu().numpy()
            others["argpartition"] = lambda a=host, k=n - drop: np.argpartition(a, k)
        kept = ops.select_kept(scores, drop, "high")
        copy = size_of(scores, scores) / median_us(scores.clone, device)
        yield row_of("select_kept", n, lambda s=scores, k=drop: ops.select_kept(s, k, "high"),
                     size_of(scores, kept), others, copy, device)


def row_of(name, n, call, moved, others, copy, device):
    us = median_us(call, device)
    return {"operator": name, "n": n, "us": us, "GB/s": moved / us / 1e3,
            "of copy": moved / us / copy,
            **{other: median_us(f, device) / us for other, f in others.items()}}


def kernels(device):
    rows = [*rows_of_batches(device), *rows_of_selections(device)]
    print(f"{'operator':<21} {'elements':>11} {'us':>10} {'GB/s':>7} {'of copy':>7}  "
          "alternatives, times as long")
    for row in rows:
        others = "  ".join(f"{name} {row[name]:.1f}" for name in list(row)[5:])
        print(f"{row['operator']:<21} {row['n']:>11,} {row['us']:>10,.1f} {row['GB/s']:>7.1f} "
              f"{row['of copy']:>7.2f}  {others}")
    return {"rows": rows}


# --- whole epochs

def subject_name(device):
    return "cifar10" if device.type == "cuda" else "mnist"


def subject(device, data_dir):
    """(data set, network): CIFAR-10 and PreActResNet18 on a GPU, else MNIST and its network."""
    dataset = data.load(subject_name(device), data_dir, None, device)
    channels, size = dataset.images.shape[1], dataset.images.shape[-1]
    model = models.build(models.DEFAULT[channels], channels, 10, None, size).to(device)
    return dataset, model


def network_alone(model, dataset, batch_size):
    """Scoring's passes on batches that are there already: no perturbation, no bookkeeping."""
    x = dataset.images[:batch_size].float() / 255
    with attacks.frozen(model):
        for y in dataset.labels.split(batch_size):
            attacks.input_grad(model, x[:len(y)], y)
            with torch.no_grad():
                model(x[:len(y)])


def scoring(device, data_dir, rounds=5):
    dataset, model = subject(device, data_dir)
    torch.backends.cudnn.benchmark = True
    calls = {"scoring": lambda: prune.score(model, dataset, eps=EPS, alpha=ALPHA, batch_size=500),
             "network alone": lambda: network_alone(model, dataset, 500)}
    seconds = {name: [] for name in calls}
    for round_ in range(rounds + 1):  # in turn, so that both see the machine's moods; one to warm
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            sync(device)
            if round_:
                seconds[name].append(time.perf_counter() - start)
    rates = {name: len(dataset.labels) / float(np.median(s)) for name, s in seconds.items()}
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    for name, rate in rates.items():
        print(f"{name:<14} {rate:12,.0f} images/s   ({dataset.name})")
    print(f"scoring takes {np.median(ratios):.3f} times the network alone")
    return {"dataset": dataset.name, "images_per_second": rates,
            "overhead": float(np.median(ratios)) - 1}


def training(device, data_dir):
    """Two epochs of training with the kernels, and with the references instead."""
    seconds = {}
    for name in ("kernels", "references"):
        code = (f"import train; train.main(['--dataset', '{subject_name(device)}', '--epochs', "
                f"'2', '--limit', '10000', '--data-dir', {str(data_dir)!r}, '--out', 'run'])")
        environment = {**runs.os.environ, "ADVPRUNE_KERNELS": str(int(name == "kernels")),
                       "PYTHONPATH": str(runs.HERE)}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment,
                                  capture_output=True, text=True, check=True)
        seconds[name] = json.loads(done.stdout.splitlines()[-1])["train_seconds"]
        print(f"{name:<11} {20000 / seconds[name]:10,.0f} images/s")
    return {"dataset": subject_name(device), "seconds": seconds}


# --- everything for results/, on a machine with a card

def records(device, data_dir, budget):
    """The gpu tests, the benchmarks, CIFAR-10 trained and attacked, each a results/gpu-*.json.

    Each step gets what is left of the budget [s] and is ended there; what came before stays.
    """
    if device.type != "cuda":
        raise runs.UserError("records are of a CUDA machine; here, benchmark.py kernels works")
    end, results, python = time.monotonic() + budget, runs.HERE / "results", sys.executable
    cifar = ["train.py", "--dataset", "cifar10", "--data-dir", str(data_dir), "--out"]
    stamp = time.strftime("runs/gpu-%Y%m%d-%H%M%S")
    pruned = ["--prune", "high", "--p", "0.4", "--epoch", "3"]
    attack = ["--attack", "autoattack", "--n", "1000"]
    steps = {
        "tests": ["-m", "pytest", "-m", "gpu", "tests/test_kernels.py"],
        "kernels": ["benchmark.py", "kernels"], "scoring": ["benchmark.py", "scoring"],
        "training": ["benchmark.py", "training"],
        "cifar10-full": [*cifar, f"{stamp}-full"],
        "cifar10-full-autoattack": ["evaluate.py", f"{stamp}-full", *attack],
        "cifar10-high-0.4": [*cifar, f"{stamp}-high", *pruned],
        "cifar10-high-0.4-autoattack": ["evaluate.py", f"{stamp}-high", *attack]}
    finished = {}
    for name, command in steps.items():
        if "benchmark.py" in command:
            command = [*command, "--data-dir", str(data_dir)]
        record = {"command": " ".join(["python", *command]), **runs.environment(device)}
        try:
            done = subprocess.run([python, *command], cwd=runs.HERE, stdout=subprocess.PIPE,
                                  text=True, timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            record["cut_off"] = True
            finished[name] = "cut off"
        else:
            last = (done.stdout.strip().splitlines() or [""])[-1]
            record["exit_code"] = done.returncode
            record["result"] = json.loads(last) if last.startswith("{") else last
            finished[name] = done.returncode
        runs.write_json(results / f"gpu-{name}.json", record)
        print(f"{name}: {finished[name]}, {end - time.monotonic():.0f} s left", file=sys.stderr)
    return finished


@runs.script
def main(argv=None):
    parser = runs.Parser(__doc__)
    flag = parser.add_argument
    flag("what", nargs="?", default="kernels",
         choices=["kernels", "scoring", "training", "records"])
    flag("--json", metavar="FILE", help="write the record here; overwrites nothing")
    flag("--figure", metavar="FILE", help="draw the kernels' bars into this PNG")
    flag("--budget", type=runs.number(float, 1), default=600, help="seconds for records (600)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    args = parser.parse_args(argv)
    device = runs.device(args.device)
    if args.json and Path(args.json).exists():
        raise runs.UserError(f"{args.json} exists already; move it away, nothing is overwritten")
    header = {"command": runs.command("benchmark.py", argv), "kernels": ops.KERNELS,
              **runs.environment(device)}
    print(f"{header['device']}, {header['threads']} threads, torch {torch.__version__}, "
          f"kernels {ops.KERNELS}, {torch.__config__.show().splitlines()[1].strip(' -')}")
    if args.what == "kernels":
        record = kernels(device)
        if args.figure:
            draw(args.figure, header, record["rows"])
    elif args.what == "records":
        record = records(device, Path(args.data_dir).resolve(), args.budget)
    else:
        record = {"scoring": scoring, "training": training}[args.what](
            device, Path(args.data_dir).resolve())
    record = {**header, **record}
    if args.json:
        runs.write_json(args.json, record)
    return record


def draw(path, header, rows):
    """Bars: how many times as long each alternative takes as the kernel."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * sum(len(row) - 5 for row in rows) + 1.2),
                    layout="constrained")
    axes, labels = figure.subplots(), []
    for row in rows:
        for name in list(row)[5:]:
            labels.append(f"{row['operator']}, {row['n']:,}: {name}")
            bar = axes.barh(len(labels) - 1, row[name], color="tab:blue" if row[name] >= 1
                            else "tab:red")
            axes.bar_label(bar, fmt="%.1f", padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xscale="log", xlabel="times as long as the kernel", title=header["device"])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    runs.write_figure(path, figure)


if __name__ == "__main__":
    main()
