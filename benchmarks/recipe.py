"""The training that a benchmark measures: train.py's own, with its recipes."""
from advprune import settings


def words(args, device):
    """train.py's flags for those of benchmark.py."""
    given = {"--dataset": args.dataset, "--model": args.model, "--width": args.width,
             "--precision": args.precision, "--limit": args.limit, "--data-dir": args.data_dir,
             "--device": device}
    return [str(word) for flag, value in given.items() if value is not None
            for word in (flag, value)]


def of(args, device, *flags):
    """train.py's settings for the flags of benchmark.py, and for these further ones."""
    return settings.parse([*words(args, device), *flags])


def title(used, n):
    """What was trained, for the line above a table."""
    width = f" of width {used.width}" if used.width else ""
    return f"{used.dataset}, {used.network['name']}{width}, {used.precision}, {n:,} examples"


def fields(used, n):
    """The same for a record."""
    return {"dataset": used.dataset, "model": used.network["name"], "width": used.width,
            "precision": used.precision, "batch_size": used.batch_size, "examples": n}
