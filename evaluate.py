"""Clean and adversarial accuracy of a run, or of a weights file, on test images.

    python evaluate.py runs/NAME --attack autoattack --n 1000
    python evaluate.py --weights mnist.pth --dataset mnist --attack pgd

Attacks, in the l-infinity ball of --epsilon and the box [0, 1]; of several, the pointwise worst
case counts:
    clean       none (with it alone, --n is all test images)
    fgsm        one step of size eps from the image itself
    pgd         PGD-50-10: 50 steps, 10 restarts, as fast_adversarial evaluates
    apgd        APGD on the cross-entropy, the first attack of AutoAttack
    autoattack  AutoAttack standard (Croce & Hein 2020): apgd-ce, apgd-t, fab-t, square

Every returned example is checked against ball and box, and counted by what the model says of it.
Interrupted, the same command goes on where it was. Writes RUN/eval-ATTACK-N.json, or --out FILE;
overwrites nothing.
"""
import argparse
import hashlib
import itertools
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from tqdm import tqdm

import attacks
import data
import models
import runs

ATTACKS = {"clean": [], "fgsm": ["fgsm"], "pgd": ["pgd-50-10"], "apgd": ["apgd-ce"],
           "autoattack": ["apgd-ce", "apgd-t", "fab-t", "square"]}
ROUNDING = 1e-6  # how far float32 arithmetic may carry an attack past eps


def wilson(count, n, z=1.959964):
    """Wilson's score interval for a proportion (95 % by default), as [low, high]."""
    p = count / n
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]


def perturb(attack, model, x, y, ids, eps, step, seed):
    """What one attack makes of x [B, C, H, W] in [0, 1], all of it classified right as y [B]."""
    if attack == "fgsm":
        return attacks.rs_fgsm(model, x, y, ids, eps=eps, alpha=eps, seed=seed, epoch=0,
                               noise_scale=0.0)
    if attack == "pgd-50-10":
        return attacks.pgd(model, x, y, ids, eps=eps, alpha=step, steps=50, restarts=10, seed=seed)
    standard = AutoAttack(model, eps=eps, seed=seed, device=x.device)
    standard.attacks_to_run = [attack]
    others = model(x[:1]).shape[1] - 1  # it would target nine classes even of fewer
    standard.apgd_targeted.n_target_classes = standard.fab.n_target_classes = min(9, others)
    return standard.run_standard_evaluation(x, y, batch_size=len(x))[0]


class Evaluation:
    """Which images still stand after each attack; in a state file after every batch."""

    def __init__(self, model, images, labels, settings, path):
        self.model, self.images, self.labels = model, images, labels
        self.settings, self.path = settings, path
        self.robust = models.predict(model, images) == labels  # [n]
        self.clean, self.largest, self.seconds = int(self.robust.sum()), 0.0, 0.0
        self.per_attack, self.todo, self.done = {}, None, 0  # todo: ids the present attack is for
        if path.exists():
            state = torch.load(path, map_location=labels.device, weights_only=True)
            for name, value in state.items():
                setattr(self, name, value)

    def run(self, names):
        for name in [name for name in names if name not in self.per_attack]:
            if self.todo is None:
                self.todo, self.done = self.robust.nonzero().flatten(), 0
            n = len(self.todo)
            with tqdm(total=n, initial=self.done, desc=name, unit="img", disable=None) as bar:
                while self.done < n:
                    size = self.batch(name, self.todo[self.done:][:self.settings["batch_size"]])
                    bar.update(size)
                    bar.set_postfix(robust=int(self.robust.sum()))
            left = int(self.robust.sum())
            self.per_attack[name] = {"attacked": n, "broken": n - left, "robust_count": left}
            self.todo = None
            self.save()

    def batch(self, name, ids):
        start, eps = time.perf_counter(), self.settings["epsilon"]
        x, y = self.images[ids].float() / 255, self.labels[ids]
        adv = perturb(name, self.model, x, y, ids, eps, self.settings["step"],
                      self.settings["seed"])
        distance = (adv - x).abs().max().item()
        if not (distance <= eps + ROUNDING and adv.min() >= 0 and adv.max() <= 1):
            raise RuntimeError(f"{name} left the ball (it went {distance}) or the box: void")
        self.largest = max(self.largest, distance)
        with torch.no_grad():
            self.robust[ids] = self.model(adv).argmax(1) == y
        self.done += len(ids)
        self.seconds += time.perf_counter() - start
        self.save()
        return len(ids)

    def save(self):
        kept = ("settings", "robust", "per_attack", "todo", "done", "largest", "seconds")
        state = {name: getattr(self, name) for name in kept}
        runs.write_saved(self.path, torch.save, state)


def attack_names(text):
    names = text.split(",")
    if unknown := [name for name in names if name not in ATTACKS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ATTACKS)}")
    return names


def parse(argv):
    parser = runs.Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", help="a finished run's directory")
    flag("--weights", metavar="FILE", help="instead of a run: a state dict, .pth or .safetensors")
    flag("--dataset", choices=data.NAMES, help="with --weights: what to evaluate on")
    flag("--model", choices=models.MODELS, help="with --weights: as for train.py")
    flag("--width", type=runs.positive_int, help="with --weights: as for train.py")
    flag("--image-size", type=runs.positive_int, metavar="PIXELS",
         help=f"with --weights and --dataset folder: side of the images ({data.IMAGE_SIZE})")
    flag("--skip-bad", action="store_true", help="with those: leave out images that are broken")
    flag("--attack", type=attack_names, default=["pgd", "autoattack"], metavar="A,B",
         help=f"of {', '.join(ATTACKS)} (pgd,autoattack)")
    flag("--n", type=runs.positive_int, help="the first N test images (1000; all for clean)")
    flag("--epsilon", type=runs.budget, help="l-inf budget, such as 8/255 (as trained)")
    flag("--batch-size", type=runs.positive_int, default=500)
    flag("--seed", type=runs.seed, default=0)
    flag("--data-dir", help="where the data sets are (as for the run, or data)")
    flag("--out", metavar="FILE", help="the new JSON file")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    args = parser.parse_args(argv)
    args.command = runs.command("evaluate.py", argv)
    if bool(args.run) == bool(args.weights):
        parser.error("name a run's directory, or --weights FILE with its --dataset")
    if args.weights and not args.dataset:
        parser.error("--weights needs --dataset")
    for name in ("dataset", "model", "width", "image_size", "skip_bad"):
        if args.run and getattr(args, name):
            parser.error(f"--{name.replace('_', '-')} goes with --weights; a run knows its own")
    if args.weights and args.dataset != "folder" and (args.image_size or args.skip_bad):
        parser.error("--image-size and --skip-bad are for --dataset folder")
    return args


def subject(args, device):
    """(model, data set, budget) of the run or the weights file."""
    if args.run:
        config = runs.config(args.run)
        model, trained = models.from_run(args.run, config), config["args"]
        dataset = data.of_run(trained, args.data_dir, device, train=False)
        if len(dataset.classes) != trained["network"]["classes"]:
            raise runs.UserError(f"{args.run} was trained on {trained['network']['classes']} "
                                 f"classes, but the test set has {len(dataset.classes)}")
        eps = trained["epsilon"]
    else:
        dataset = data.load(args.dataset, args.data_dir or "data", 0, device, args.image_size,
                            args.skip_bad)
        channels, size = dataset.images.shape[1], dataset.images.shape[-1]
        model = models.build(args.model or models.DEFAULT[channels], channels,
                             len(dataset.classes), args.width, size)
        models.load_weights(model, args.weights)
        eps = data.EPSILON[args.dataset]
    if args.epsilon is not None:
        eps = args.epsilon
    return model.to(device).eval().requires_grad_(False), dataset, eps


def output(out, stem, settings):
    """(file to write, state file): `out`, or the first free stem.json, stem-2.json, ...

    A state file of the same settings is one to go on from; one of other settings is in the way.
    """
    paths = [Path(out)] if out else (
        Path(f"{stem}-{i}.json" if i > 1 else f"{stem}.json") for i in itertools.count(1))
    for path in paths:
        state = path.with_suffix(".state")
        ours = not state.exists() or torch.load(state, weights_only=True)["settings"] == settings
        if ours and not path.exists():
            return path, state
    raise runs.UserError(f"{out} or its .state exists already; give another --out")


@runs.script
def main(argv=None):
    args = parse(argv)
    device = runs.device(args.device)
    model, dataset, eps = subject(args, device)
    n = args.n or (len(dataset.test_labels) if args.attack == ["clean"] else 1000)
    n = min(n, len(dataset.test_labels))
    weights = b"".join(v.cpu().numpy().tobytes() for v in model.state_dict().values())
    settings = {
        "weights": hashlib.sha256(weights).hexdigest(), "dataset": dataset.name, "n": n,
        "attacks": list(dict.fromkeys(a for name in args.attack for a in ATTACKS[name])),
        "epsilon": eps,
        "step": data.PGD_STEP[dataset.name] * eps / data.EPSILON[dataset.name],
        "seed": args.seed, "batch_size": args.batch_size}
    stem = f"{args.run}/eval" if args.run else f"runs/{Path(args.weights).stem}"
    out, state = output(args.out, f"{stem}-{'+'.join(args.attack)}-{n}", settings)
    out.parent.mkdir(parents=True, exist_ok=True)

    evaluation = Evaluation(model, dataset.test_images.narrow(0, 0, n), dataset.test_labels[:n],
                            settings, state)
    evaluation.run(settings["attacks"])
    count = int(evaluation.robust.sum())
    record = {
        "source": args.run or args.weights, "dataset": dataset.name,
        "attack": ",".join(args.attack), "n": n, "epsilon": eps,
        "clean_accuracy": evaluation.clean / n, "robust_accuracy": count / n,
        "robust_count": count, "per_attack": evaluation.per_attack,
        "seconds": evaluation.seconds, "max_perturbation": evaluation.largest,
        "clean_interval": wilson(evaluation.clean, n), "robust_interval": wilson(count, n),
        "seed": args.seed}
    report(record)
    runs.write_json(out, {**record, "command": args.command, **runs.environment(device)})
    state.unlink(missing_ok=True)
    return record


def report(record):
    n, (low, high) = record["n"], record["robust_interval"]
    print("{source}: {n:,} test images of {dataset}, eps = {epsilon:.4g}".format(**record))
    print(f"{'clean':>12} {record['clean_accuracy']:.4f}")
    for name, counts in record["per_attack"].items():
        print(f"{name:>12} {counts['robust_count'] / n:.4f}  "
              f"({counts['broken']} of {counts['attacked']} broken)")
    print(f"robust accuracy {record['robust_accuracy']:.4f} (95 % interval {low:.4f} to "
          f"{high:.4f}); largest perturbation {record['max_perturbation']:.6f}; "
          f"{record['seconds']:.1f} s")


if __name__ == "__main__":
    main()
