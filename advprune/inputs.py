"""What a run of train.py loads before it begins, checked against its settings."""
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor, nn

from advprune import data, locks, models, processes, pruning, runs, saved, settings
from advprune.cli import UserError


def claim(args: Namespace) -> tuple[Namespace, dict]:
    """(the settings to train with, the record of the run where that is finished, else {}).

    Where torchrun has restarted its processes, the settings are those of the run that they had
    begun. A run to resume is locked here.
    """
    if processes.restarted() and not args.resume:
        run = processes.from_first(runs.of_launch(processes.launch(), args.out))
        if run and (record := runs.record(run)):
            return args, record
        args = settings.parse(["--resume", str(run)]) if run else args
    if args.out and not args.resume and processes.rank() == 0:
        runs.check_folder(args.out)
    if args.resume and processes.rank() == 0:
        locks.lock(Path(args.resume) / ".lock", f"the run {args.resume}")
    return args, {}


def dataset(args: Namespace, device: torch.device) -> data.Dataset:
    """The data set. Fills in args.network, which depends on its images."""
    if args.precision == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 needs a CUDA GPU; use fp32 or bf16 here")
    with processes.first_process_first():  # process 0 downloads for all
        loaded = data.of_run(vars(args), device=device)
    n, shape = len(loaded.labels), loaded.images.shape
    if round(args.p * n) == n:
        raise UserError(f"--p {args.p} leaves none of the {n} examples")
    if not args.resume:
        args.network = settings.network(args, shape[1], len(loaded.classes), shape[-1])
    return loaded


def margin_model(args: Namespace, device: torch.device, code: str | None) -> nn.Module | None:
    """The network of --margin-model, from a run or a weights file; None without the flag."""
    path = args.margin_model
    if not path:
        return None
    if not Path(path).is_dir():
        return models.load_weights(models.build(**args.network, code=code), path).to(device)
    config = runs.config(path)
    if odd := [name for name in ("channels", "classes", "size")
               if config["args"]["network"][name] != args.network[name]]:
        raise UserError(f"--margin-model {path} was trained on other data: its {odd[0]} differ")
    return saved.from_run(path, config, args.trust_code).to(device)


def scores(args: Namespace, labels: Tensor) -> tuple[Tensor, str] | None:
    """(scores [N], their kind) of --scores; None without the flag."""
    if not args.scores:
        return None
    return pruning.load(args.scores, labels, "margin" if args.adapt_eps else None)


def smallest_batch(args: Namespace, dataset: data.Dataset, model: nn.Module) -> int:
    """How many images a batch must have: two in each process for batch normalisation, or 1.

    Raises UserError where the batches of this run cannot have as many.
    """
    kinds = torch.nn.modules.batchnorm._BatchNorm
    if not any(isinstance(layer, kinds) for layer in model.modules()):
        return 1
    n, smallest = len(dataset.labels), 2 * processes.world()
    left = dataset.epoch_size(n - round(args.p * n))
    if min(args.batch_size, left) < smallest:
        few = min((args.batch_size, "a batch"), (left, "an epoch"))
        raise UserError(f"{args.network['name']} has batch normalisation, which needs "
                        f"{smallest} images at a time or more; {few[1]} has {few[0]}")
    return smallest
