"""A run's directory as train.py opens and fills it; runs.py lists its files."""
from pathlib import Path

import safetensors.torch
import torch
from tqdm import tqdm

import ops
import prune
import runs


def create(args, training):
    """A new directory with the run's config.json."""
    how = "trades" if args.loss == "trades" else args.attack
    pruned = f"-{args.prune}-p{args.p:g}" if args.prune != "none" else "-adapted"
    pruned = f"{pruned}-e{args.epoch}" if args.epoch is not None else ""
    folder = runs.create(args.out, f"{args.dataset}-{how}{pruned}-s{args.seed}")
    used = {k: v for k, v in vars(args).items() if k not in ("command", "resume")}
    runs.write_json(folder / "config.json", {
        "command": args.command, "args": used, "kernels": ops.KERNELS,
        **runs.environment(training.device)})
    return folder


def restore(folder, training):
    """Bring the training to where the interrupted run in this directory ended."""
    folder = Path(folder)
    if (folder / "train.json").exists():
        raise runs.UserError(f"{folder} is finished; evaluate it: python evaluate.py {folder}")
    if not (folder / "state.pt").exists():
        raise runs.UserError(f"{folder} ended within its first epoch; start it afresh")
    state = torch.load(folder / "state.pt", map_location=training.device, weights_only=True)
    if len(state["running"]) != len(training.dataset.labels):
        raise runs.UserError(f"{folder} was trained on {len(state['running'])} examples, but its "
                             f"files now have {len(training.dataset.labels)}")
    training.restore(state)


class Log:
    """What process 0 prints and writes into the run's directory."""

    def __init__(self, folder, tensorboard):
        self.folder, self.events = folder, None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(folder)
        tqdm.write("epoch        lr  examples    loss  accuracy  seconds  images/s")

    def pruned(self, args, training, kind, scores):
        dataset, kept = training.dataset, training.kept
        prune.save(self.folder / "scores.npz", scores, dataset.labels, kept, kind)
        prune.draw(self.folder / "pruned.png", dataset, scores, kept,
                   f"{args.dataset}: {args.prune} by {kind}, p = {args.p:g}, epoch {args.epoch}",
                   training.margin_model if kind.startswith("margin") else training.result)
        pruning = "no" if args.prune == "none" else args.prune
        tqdm.write(f"{pruning} pruning kept {len(kept):,} of {len(scores):,} "
                   f"({training.prune_seconds:.1f} s)")
        if budgets := training.adaptation():
            tqdm.write("budgets: mean {mean_eps:.4g}, below {full:.4g} for {adapted:.1%} of the "
                       "kept".format(full=args.epsilon, **budgets))

    def epoch(self, training):
        row = training.rows[-1]
        tqdm.write("{epoch:5d}  {lr:8.2g}  {examples:8,d}  {loss:6.3f}  {accuracy:8.4f}  "
                   "{seconds:7.1f}  {images_per_second:8,.0f}".format(**row))
        runs.write_csv(self.folder / "log.csv", training.rows)
        runs.write_saved(self.folder / "state.pt", torch.save, training.state())
        if self.events:
            for name in ("lr", "examples", "loss", "accuracy", "images_per_second"):
                self.events.add_scalar(name, row[name], row["epoch"])
            self.events.flush()

    def finish(self, model, record):
        weights = {name: v.contiguous().cpu() for name, v in model.state_dict().items()}
        runs.write(self.folder / "model.safetensors", safetensors.torch.save(weights))
        runs.write_json(self.folder / "train.json", record)
        print("clean accuracy {clean_accuracy:.4f}; trained in {train_seconds:.1f} s, pruned in "
              "{prune_seconds:.1f} s: {run}".format(**record))
