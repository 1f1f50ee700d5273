"""What the kernels are worth: in whole epochs, and one by one. All comparisons are ratios.

    python benchmark.py ablation [--json FILE]
    python benchmark.py kernels [--json FILE] [--figure FILE.png]

ablation trains and scores with all kernels, without each of them, and without any: images/s, each
the median of several rounds in which the variants take turns. Without a kernel there are the lines
of plain torch that one would write instead. "network alone" makes the same passes through the
network and nothing else.

kernels times each operator beside a copy, eager torch as fast_adversarial writes it, torch.compile
of the same lines, and for the selection torch.topk, torch.sort and numpy.argpartition: medians of
several runs in one process. GB/s counts what an operator must read and write, from numel and
element_size; `of copy` is its share of the copy's GB/s.
"""
if __name__ == "__main__":  # before the imports that take long
    from advprune import signals

    signals.die_of_interrupts()

import contextlib
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import train
from advprune import attacks, cli, files, ops, plots, pruning, runs, settings

BATCHES = [(128, 3, 32, 32), (512, 1, 28, 28), (2048, 3, 32, 32), (20834, 3, 32, 32)]  # to 64 M
SELECTIONS = [50_000, 1_000_000, 10_000_000, 100_000_000]
EPS, ALPHA = 8 / 255, 10 / 255
LIMIT, ROUNDS = 10_000, 7  # of ablation: examples an epoch, and epochs of each variant


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


def eager_augment(images, ids, seed, epoch, pad=0, flip=False, channels_last=False, rows=None):
    x = images[ids if rows is None else rows].float() / 255
    if pad:
        n, _, h, w = x.shape
        dy, dx = torch.randint(2 * pad + 1, (2, n, 1), device=x.device)
        ys, xs = dy + torch.arange(h, device=x.device), dx + torch.arange(w, device=x.device)
        example = torch.arange(n, device=x.device)[:, None, None]
        x = F.pad(x, (pad,) * 4)[example, :, ys[:, :, None], xs[:, None]].permute(0, 3, 1, 2)
    if flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x.flip(3), x)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def eager_select(scores, drop, how):
    return torch.topk(scores, len(scores) - drop, largest=how == "low").indices.sort().values


def rows_of_batches(device):
    """One row an operator and size: its time and bytes, and its alternatives' times."""
    largest = 0.5 * (torch.cuda.get_device_properties(device).total_memory
                     if device.type == "cuda" else 4e9)
    compiled_both = torch.compile(eager_both)
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
                        {"eager": lambda: eager_augment(images, ids, 0, 0, 4, True)}),
            "cross_entropy_scores": (lambda: ops.cross_entropy_scores(logits, labels),
                                     size_of(logits, labels) + 5 * len(ids),
                                     {"eager": lambda: eager_scores(logits, labels)}),
        }
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

class Eager:
    """The operators' alternatives under the operators' names; a step needs its start again."""

    def rs_start(self, x, ids, eps, seed, epoch, clip_start=False, noise_scale=1.0):
        x = ops.pixels(x)
        self.start = x + torch.empty_like(x).uniform_(-eps, eps)
        if clip_start:
            self.start = self.start.clamp(0, 1)
        return self.start

    def fgsm_step(self, x, grad, ids, eps, alpha, *_, **__):
        x = ops.pixels(x)
        delta = torch.clamp(self.start.detach() - x + alpha * torch.sign(grad), -eps, eps)
        return torch.clamp(x + delta, 0, 1)

    augment = staticmethod(eager_augment)
    cross_entropy_scores = staticmethod(eager_scores)
    select_kept = staticmethod(eager_select)


VARIANTS = {"all kernels": (), "without rs_start, fgsm_step": ("rs_start", "fgsm_step"),
            "without augment": ("augment",),
            "without cross_entropy_scores": ("cross_entropy_scores",),
            "without select_kept": ("select_kept",), "no kernel": tuple(ops.SCHEMAS)}


@contextlib.contextmanager
def without(names):
    """Within the block, plain torch computes these operators."""
    eager = Eager()
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(ops, name, getattr(eager, name)))
        yield


def network_alone(training, images, labels, update):
    """An epoch's passes through the network, on one batch that is there already."""
    size = training.args.batch_size if update else 500
    x = images[:size].float() / 255
    if training.layout == torch.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    for y in labels.split(size):
        with attacks.frozen(training.model):
            attacks.input_grad(training.model, x[:len(y)], y)
        if update:
            training.opt.zero_grad()
            F.cross_entropy(training.model(x[:len(y)]), y).backward()
            training.opt.step()
        else:
            with torch.no_grad():
                training.model(x[:len(y)])


def ablation(device, data_dir):
    """A row for each variant: images/s of training and of scoring with selection."""
    name = "cifar10" if device.type == "cuda" else "mnist"
    args = settings.parse(["--dataset", name, "--data-dir", data_dir, "--limit", str(LIMIT),
                           "--device", str(device)])
    training, _ = train.begin(args, device)
    images, labels, bar = training.dataset.images, training.dataset.labels, tqdm(disable=True)

    def score():
        scores = pruning.score(training.model, images, labels, eps=args.epsilon)
        pruning.select(scores, "high", 0.4)

    jobs = {(variant, what): (names, call) for variant, names in VARIANTS.items() for what, call in
            (("training", lambda: training.epoch(0, bar)), ("scoring", score))}
    for what, update in (("training", True), ("scoring", False)):
        jobs["network alone", what] = (
            (), lambda u=update: network_alone(training, images, labels, u))
    seconds = {job: [] for job in jobs}
    for round_ in range(ROUNDS + 1):  # the first round warms up
        for job, (names, call) in jobs.items():
            with without(names):
                start = time.perf_counter()
                call()
                sync(device)
                if round_:
                    seconds[job].append(time.perf_counter() - start)
    print(f"{name}, {LIMIT:,} examples, medians of {ROUNDS} rounds\n"
          f"{'':30} training images/s     scoring images/s")
    rows, medians = [], {job: float(np.median(s)) for job, s in seconds.items()}
    for variant in (*VARIANTS, "network alone"):
        rows.append({"variant": variant})
        for what in ("training", "scoring"):
            rows[-1][what] = len(labels) / medians[variant, what]
            rows[-1][f"{what}_ratio"] = (medians["all kernels", what] / medians[variant, what])
        print("{variant:30} {training:9,.0f}  ({training_ratio:.2f})    {scoring:9,.0f}  "
              "({scoring_ratio:.2f})".format(**rows[-1]))
    return {"dataset": name, "examples": len(labels), "rounds": ROUNDS, "rows": rows}


@cli.script
def main(argv=None):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("what", nargs="?", default="kernels", choices=["ablation", "kernels"],
         help="which table (kernels)")
    flag("--json", metavar="FILE", help="write the record here; overwrites nothing")
    flag("--figure", metavar="FILE", help="draw the kernels' bars into this PNG")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    args = parser.parse_args(argv)
    if args.figure and args.what != "kernels":
        parser.error("--figure is for kernels")
    if args.json and args.json == args.figure:
        parser.error("--json and --figure name the same file")
    for path in filter(None, (args.json, args.figure)):
        runs.check_output(path)
    device = cli.device(args.device)
    header = {"command": cli.command("benchmark.py", argv), "kernels": ops.KERNELS,
              **runs.environment(device),
              "cpu": torch.backends.cpu.get_cpu_capability()}
    print("{device}, {threads} threads, torch {torch}, kernels {kernels}, {cpu}".format(
        torch=torch.__version__, **header))
    record = {**header, **(kernels(device) if args.what == "kernels"
                           else ablation(device, str(Path(args.data_dir).resolve())))}
    if args.figure:
        files.write_figure(args.figure, plots.kernels(record))
    if args.json:
        files.write_json(args.json, record)
    return record


if __name__ == "__main__":
    main()
