"""What training costs, and what the kernels are worth. All comparisons are ratios.

    python -m benchmarks kernels [--operator NAME] [--shape 128,3,32,32] [--dtype bf16]
    python -m benchmarks ablation [--json FILE]
    python -m benchmarks training --dataset mnist [--json FILE]
    python -m benchmarks scale --dataset mnist [--json FILE]
    python -m benchmarks layouts [--json FILE]

kernels   times each operator beside a copy, eager torch as fast_adversarial writes it,
          torch.compile of the same lines, and for the selection torch.topk, torch.sort and
          numpy.argpartition. A row is printed as it is measured. us: the median; spread: from
          the 10th to the 90th percentile, relative to it; GB/s: what the operator must read and
          write; of a copy: its share of the copy's GB/s.
ablation  trains and scores with all kernels, without each of them and each fast layer, and
          without any: images/s. Without a kernel there are the lines of plain torch that one
          would write instead. "network alone" makes the same passes through the network and
          nothing else.
training  says where an epoch's time goes. Beside each part is its floor: the same passes alone.
          The loop of fast_adversarial runs in turn with ours.
scale     trains on all data and with 20 to 80 % dropped: seconds against examples seen, and peak
          memory against the size of the data set.
layouts   times training steps of several networks, in both memory layouts and in two precisions.

Numbers are medians of rounds in which the things to compare take turns, so that a machine that
slows down meanwhile does not decide. docs/kernels.md and docs/speed.md explain the tables.
"""
import argparse
import math
import sys
from pathlib import Path

import torch

from advprune import config, console, files, ops, precision, run
from advprune.errors import UserError
from benchmarks import ablation, kernels, layouts, scale, tables, training

MEASURES = {"ablation": ablation, "kernels": kernels, "training": training, "scale": scale,
            "layouts": layouts}
KERNELS = ("operator", "shape", "dtype")
LIMIT = 10_000  # examples of an epoch
SHOWN = ("kernels", "layouts")  # row by row, as they are measured
TRAINS = ("ablation", "training", "scale")
USES = {  # flag -> what it is for
    **dict.fromkeys(("dataset", "limit", "model", "width", "precision"), TRAINS),
    **dict.fromkeys(KERNELS, ("kernels",)),
    "epochs": ("scale",), "rounds": ("kernels", "ablation", "training", "layouts")}


def shape(text):
    """An argparse type: whole numbers above 0, such as 128,3,32,32."""
    sizes = tuple(map(console.positive_int, text.split(",")))
    if math.prod(sizes) >= 2**40:
        raise argparse.ArgumentTypeError(f"{text} are more values than any memory holds")
    return sizes


def parser():
    made = console.Parser(__doc__)
    flag = made.add_argument
    flag("what", nargs="?", default="kernels", choices=list(MEASURES),
         help="which measurement (kernels)")
    flag("--json", metavar="FILE", help="write the record here; overwrites nothing")
    flag("--operator", choices=list(kernels.OPERATORS), help="only this one (all)")
    flag("--shape", type=shape, metavar="B,C,H,W", help="of the images; of logits B,K, of scores "
         "N (two of each)")
    flag("--dtype", choices=list(kernels.DTYPES), help="of the images or logits (fp32; of what "
         "augment takes, uint8)")
    flag("--dataset", choices=list(config.RECIPES), help="what to train on (digits; for "
         "ablation, mnist on a CPU and cifar10 on a GPU)")
    flag("--data-dir", default="data", help="where the data sets are (data)")
    flag("--limit", type=console.positive_int, metavar="N", help="use the first N examples "
         f"(scale: all; others: {LIMIT:,})")
    flag("--model", type=config.model_name, metavar="NAME", help="as for train.py")
    flag("--width", type=console.positive_int, help="as for train.py")
    flag("--precision", choices=["fp32", "tf32", "bf16"], help="as for train.py (fp32)")
    flag("--epochs", type=console.number(int, 2), help="of each run of scale; it prunes after "
         f"three tenths of them ({scale.EPOCHS})")
    flag("--rounds", type=console.positive_int, help="how many, after one that warms up "
         f"({ablation.ROUNDS}; kernels: {kernels.ROUNDS}; layouts: {layouts.ROUNDS})")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    return made


def parse(argv):
    """The arguments, checked."""
    args = parser().parse_args(argv)
    for name, users in USES.items():
        if getattr(args, name) is not None and args.what not in users:
            raise UserError(f"--{name} is for {' and '.join(users)}, not for {args.what}")
    if args.json:
        files.check_new(args.json)
    args.data_dir = str(Path(args.data_dir).resolve())
    if args.what in ("ablation", "training"):
        args.limit = args.limit or LIMIT
    args.rounds = args.rounds or getattr(MEASURES[args.what], "ROUNDS", None)
    return args


def main(argv=None):
    args = parse(argv)
    device = console.device(args.device)
    precision.check(args.precision, device)
    if args.what == "kernels":
        kernels.wanted(args, device)  # refused here, before anything is printed
    command = console.command("-m", ["benchmarks", *(sys.argv[1:] if argv is None else argv)])
    header = {"command": command, "kernels": ops.KERNELS, **run.environment(device),
              "cpu": torch.backends.cpu.get_cpu_capability()}
    print("{device}, {threads} threads, torch {torch}, kernels {kernels}, {cpu}".format(
        torch=torch.__version__, **header))
    record = {**header, **MEASURES[args.what].measure(args, device)}
    if args.what not in SHOWN:
        print(tables.TABLES[args.what](record))
    if args.json:
        files.write_json(args.json, record)
    return record


if __name__ == "__main__":
    console.run(main)
