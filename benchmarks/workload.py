"""The training that a benchmark measures: train.py's own, with its recipes."""
import inspect

import train
from advprune import config


def words(args, device, *flags):
    """train.py's flags for those of the benchmark, and these further ones."""
    given = {"--dataset": args.dataset, "--model": args.model, "--width": args.width,
             "--precision": args.precision, "--limit": args.limit, "--data-dir": args.data_dir,
             "--device": device}
    return [*(str(word) for flag, value in given.items() if value is not None
              for word in (flag, value)), *flags]


def begun(words, device):
    """The train.Training that begins with these flags of train.py."""
    args, settings = config.parse(list(words))
    return train.prepared(settings, device, args.data_dir or "data", args.cache_dir)[0]


def fields(settings, n):
    """What was trained on n examples, for a record."""
    return {"dataset": settings.dataset, "model": settings.model, "width": settings.width,
            "precision": settings.precision, "examples": n,
            "batch_size": config.settled(settings, n).batch_size}


def remade(optimizer, weights, **how):
    """An optimiser of these weights with the same settings, in PyTorch's default implementation.

    how, such as fused=True, names another one.
    """
    known = inspect.signature(type(optimizer)).parameters
    settings = {**optimizer.defaults, "foreach": None, "fused": None}
    settings = {name: value for name, value in settings.items() if name in known}
    return type(optimizer)(weights, **{**settings, **how})
