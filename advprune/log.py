"""What a run of train.py prints, and writes into its directory (runs.py lists the files)."""
import itertools
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

from advprune import cli, files, locks, models, ops, processes, pruning, runs, saved


class Log:
    """The directory of a run in progress; process 0 has one. It is made here, or resumed."""

    def __init__(self, args: Namespace, training: Any, code: str | None) -> None:
        self.args, self.events = args, None
        if args.resume:
            self.folder = Path(args.resume)
            cli.if_interrupted(self._interrupted)
        else:
            self._create(training, code)
        locks.sweep(self.folder)
        if args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(self.folder)
        self.printed = len(training.rows)
        for row in training.rows:
            row.setdefault("segment", 1)  # runs of older versions do not say
        self.segment = training.rows[-1]["segment"] + 1 if training.rows else 1
        tqdm.write("epoch        lr  examples    loss  accuracy  robust   clean  seconds  "
                   "images/s")

    def _create(self, training, code):
        args = self.args
        how = "trades" if args.loss == "trades" else args.attack
        pruned = f"-{args.prune}-p{args.p:g}" if args.prune != "none" else "-adapted"
        pruned = f"{pruned}-e{args.epoch}" if args.epoch is not None else ""
        folder = runs.create(args.out, f"{args.dataset}-{how}{pruned}-s{args.seed}")
        self.folder = folder
        cli.if_interrupted(self._interrupted)
        cli.at_end(lambda: runs.discard(folder))
        if code is not None:
            files.write(folder / "network.py", code)
        used = {k: v for k, v in vars(args).items() if k not in ("command", "resume")}
        files.write_json(folder / "config.json", {
            "command": args.command, "args": used, "kernels": ops.KERNELS,
            "layout": "channels-last" if training.channels_last else "contiguous",
            "launch": processes.launch(),
            **runs.environment(training.device)})

    def _interrupted(self):
        if not runs.resumable(self.folder):
            return "its first epoch had not ended, so nothing is kept"
        command = cli.command("train.py", ["--resume", str(self.folder)])
        if processes.world() > 1:
            torchrun = f"torchrun --nproc-per-node {processes.world()} --"
            command = command.replace("python", torchrun, 1)
        return f"{command} continues the run"

    def pruned(self, training: Any, kind: str, scores: Tensor) -> None:
        """Write scores.npz and pruned.png, and say how many examples are kept."""
        from advprune import plots  # here, because matplotlib's import takes a second

        args, dataset, kept = self.args, training.dataset, training.kept
        start = time.perf_counter()
        pruning.save(self.folder / "scores.npz", scores, dataset.labels, kept, kind)
        model = training.margin_model if kind.startswith("margin") else training.result
        figure = plots.pruned(
            dataset, scores, kept, lambda images: models.predict(model, images),
            f"{args.dataset}: {args.prune} by {kind}, p = {args.p:g}, epoch {args.epoch}")
        files.write_figure(self.folder / "pruned.png", figure)
        if training.guard.collapsed and kind not in ("random", "clean-loss"):
            tqdm.write("train.py: these scores say little, because the network has collapsed: it "
                       "withstands no attack", file=sys.stderr)
        if self.events:
            self.events.add_figure("pruned", figure, args.epoch)
        training.seconds["draw"] = time.perf_counter() - start
        strategy = "no" if args.prune == "none" else args.prune
        tqdm.write(f"{strategy} pruning kept {len(kept):,} of {len(scores):,} "
                   "({prune:.1f} s, and {draw:.1f} s to draw)".format(**training.seconds))
        if budgets := training.budget_statistics():
            tqdm.write("budgets of the kept examples: mean {mean_eps:.4g}; {adapted:.1%} are "
                       "below {full:.4g}".format(full=args.epsilon, **budgets))

    def epoch(self, training: Any, collapsed: str | None) -> None:
        """Print the newest row and what the guard says; write log.csv and the state."""
        if collapsed:
            tqdm.write(f"train.py: {collapsed}", file=sys.stderr)
        if not training.rows:  # rolled back to the start
            return
        row = training.rows[-1]
        row.setdefault("segment", self.segment)
        if not collapsed or row["epoch"] > self.printed:
            tqdm.write("{epoch:5d}  {lr:8.2g}  {examples:8,d}  {loss:6.3f}  {accuracy:8.4f}  "
                       "{robust:6.3f}  {clean:6.3f}  {seconds:7.1f}  {images_per_second:8,.0f}"
                       .format(**row))
            self.printed = row["epoch"]
        files.write_csv(self.folder / "log.csv", training.rows)
        runs.save_checkpoint(self.folder, training.state())
        if self.events:
            for name in ("lr", "examples", "loss", "accuracy", "robust", "clean",
                         "images_per_second"):
                self.events.add_scalar(name, row[name], row["epoch"])
            dataset = training.dataset
            right = models.predict(training.result, dataset.test_images) == dataset.test_labels
            self.events.add_scalar("clean_test_accuracy", right.double().mean().item(),
                                   row["epoch"])
            self.events.flush()

    def finish(self, training: Any, record: dict) -> None:
        """Write the weights and the record, which gets their checksum and the segments' times."""
        model, labels = training.result, training.dataset.test_labels
        record["weights"] = saved.fingerprint(model)
        segments = itertools.groupby(training.rows, key=lambda row: row["segment"])
        record["segment_seconds"] = [sum(row["seconds"] for row in rows) for _, rows in segments]
        weights = {name: v.contiguous().cpu() for name, v in model.state_dict().items()}
        files.write(self.folder / "model.safetensors", safetensors.torch.save(weights))
        files.write_json(self.folder / "train.json", record)
        share = torch.bincount(labels).max().item() / len(labels)  # 1 / classes, or more
        if record["clean_accuracy"] <= max(share + 2 * (share * (1 - share) / len(labels)) ** 0.5,
                                           1.5 / len(record["classes"])) and share < 1:
            print(f"train.py: clean accuracy {record['clean_accuracy']:.4f} is about that of "
                  f"guessing among {len(record['classes'])} classes; try another --lr, or more "
                  "--epochs or examples", file=sys.stderr)
        print("clean accuracy {clean_accuracy:.4f}; trained in {train_seconds:.1f} s, pruned in "
              "{prune_seconds:.1f} s: {run}".format(**record))
