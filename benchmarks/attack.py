"""python -m benchmarks attack: AutoAttack as evaluate.py runs it, beside pyautoattack by hand.

The attacks are the same: the package's own, with the same seed, on the same batch of test images.
evaluate.py gives them the network with our layers and layout, in parts that fit the caches. By
hand they have PyTorch's own contiguous layers and whole batches, in a process of its own whose
memory is as it comes. The network is adversarially trained first. The two take turns. CPU time
counts beside wall time, because it suffers less from other programs.
"""
import copy
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from pyautoattack import AutoAttack
from tqdm import tqdm

from advprune import checkpoint, evaluation, layers
from benchmarks import workload
from benchmarks.timing import apart, sync

N, ROUNDS, BATCH, SEED = 500, 3, 500, 0
ATTACK = "autoattack"


def robust_network(args, device):
    """(the network after the robust recipe, its data set, its budget)."""
    training = workload.begun(workload.words(args, device, "--recipe", "robust"), device)
    settings = training.settings
    with tqdm(total=settings.epochs * len(training.kept), unit="img", disable=None) as bar:
        for epoch in range(settings.epochs):
            training.epoch(epoch, bar)
    return training.model.eval().requires_grad_(False), training.dataset, settings.epsilon


def ours(model, images, labels, eps, names):
    """Which images stand, as evaluate.py finds it [n]."""
    settings = {"attacks": names, "batch_size": BATCH, "epsilon": eps, "seed": SEED, "step": None}
    with tempfile.TemporaryDirectory() as folder:
        judged = evaluation.Evaluation(model, images, labels, settings,
                                       checkpoint.State(Path(folder, "state")))
        judged.run()
    return judged.robust


def by_hand(model, images, labels, eps, names):
    """The same by the package alone."""
    attack = AutoAttack(model, eps=eps, seed=SEED, device=images.device)
    attack.verbose = False
    attack.attacks_to_run = names
    adv = attack.run_standard_evaluation(images.float() / 255, labels, batch_size=BATCH)[0]
    with torch.no_grad():
        return model(adv).argmax(1) == labels


def timed(attack, *args):
    """(its verdicts, seconds, seconds of CPU)."""
    device = args[1].device  # of the images
    sync(device)
    wall, cpu = time.perf_counter(), time.process_time()
    robust = attack(*args)
    sync(device)
    return robust, time.perf_counter() - wall, time.process_time() - cpu


def measure(args, device):
    """Seconds of both, and on how many images they disagree."""
    fast, dataset, eps = robust_network(args, device)
    images, labels = dataset.test_images[:N], dataset.test_labels[:N]
    plain, rows = layers.plain(copy.deepcopy(fast)), []
    rest = images, labels, eps, evaluation.of_names([ATTACK], len(dataset.classes))
    with apart(timed) as other:
        for _ in range(args.rounds):
            found, seconds, cpu = timed(ours, fast, *rest)
            wanted, plain_seconds, plain_cpu = other(by_hand, plain, *rest)
            rows.append({"seconds": seconds, "cpu_seconds": cpu, "plain_seconds": plain_seconds,
                         "plain_cpu_seconds": plain_cpu, "robust": int(found.sum()),
                         "plain_robust": int(wanted.sum()),
                         "differ": int((found != wanted).sum())})
            print("evaluate.py {seconds:.1f} s ({cpu_seconds:.1f} s of CPU), pyautoattack "
                  "{plain_seconds:.1f} s ({plain_cpu_seconds:.1f}); {robust} and {plain_robust} "
                  "images stand, {differ} differ".format(**rows[-1]), flush=True)
    return {"dataset": dataset.name, "n": len(labels), "batch_size": BATCH,
            "epsilon": eps, "rounds": args.rounds, "rows": rows, **{
                name: median(row[f"plain_{of}"] / row[of] for row in rows)
                for name, of in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds"))}}
