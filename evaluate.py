"""Clean and adversarial accuracy of a run, or of a weights file, on test images.

    python evaluate.py runs/NAME --attack autoattack --n 1000
    python evaluate.py --weights mnist.pth --dataset mnist --attack pgd

Attacks, in the l-infinity ball of --epsilon and the box [0, 1]:
    clean       no attack; if it is the only one, all test images are used
    fgsm        one step of size eps from the image itself
    pgd         PGD-50-10: 50 steps, 10 restarts, as fast_adversarial evaluates
    apgd        APGD on the cross-entropy, the first attack of AutoAttack
    autoattack  AutoAttack standard (Croce & Hein 2020): apgd-ce, apgd-t, fab-t, square. With 2 or
                3 classes apgd-t is not defined; then the record and the table say "not standard"

An image counts as robust only if no chosen attack breaks it. Every adversarial image is checked
against ball and box, and the network classifies it again. An interrupted
evaluation continues when the same command is given again. It writes RUN/eval-ATTACK-N.json, or
--out FILE, and overwrites nothing.
"""
if __name__ == "__main__":  # before the imports that take long
    from advprune import signals

    signals.die_of_interrupts()

import argparse
import itertools
import time
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from scipy.stats import binomtest
from tqdm import tqdm

from advprune import (
    attacks,
    cli,
    data,
    files,
    locks,
    memory,
    models,
    recipes,
    runs,
    saved,
    settings,
)

ATTACKS = {"clean": [], "fgsm": ["fgsm"], "pgd": ["pgd-50-10"], "apgd": ["apgd-ce"],
           "autoattack": ["apgd-ce", "apgd-t", "fab-t", "square"]}
FEW_CLASSES = {2: ["apgd-ce", "fab-t", "square"],  # the targeted DLR loss needs four logits,
               3: ["apgd-ce", "apgd-dlr", "fab-t", "square"]}  # the untargeted one three
ROUNDING = 1e-6  # how far float32 arithmetic may carry an attack past eps


def perturb(attack, model, x, y, ids, eps, step, seed):
    """One attack's adversarial examples of x [B, C, H, W] in [0, 1], all classified as y [B]."""
    if attack == "fgsm":
        return attacks.rs_fgsm(model, x, y, ids, eps=eps, alpha=eps, seed=seed, epoch=0,
                               noise_scale=0.0)
    if attack == "pgd-50-10":
        return attacks.pgd(model, x, y, ids, eps=eps, alpha=step, steps=50, restarts=10, seed=seed)
    standard = AutoAttack(model, eps=eps, seed=seed, device=x.device)
    standard.attacks_to_run = [attack]
    others = model(x[:1]).shape[1] - 1  # its default is nine target classes, whatever there are
    standard.apgd_targeted.n_target_classes = standard.fab.n_target_classes = min(9, others)
    return standard.run_standard_evaluation(x, y, batch_size=len(x))[0]


def members(names, classes):
    """The attacks that these names stand for, given the number of classes, each once."""
    known = {**ATTACKS, "autoattack": FEW_CLASSES.get(classes, ATTACKS["autoattack"])}
    return list(dict.fromkeys(attack for name in names for attack in known[name]))


class Evaluation:
    """Which images are still classified right after each attack; a state file has it all."""

    def __init__(self, model, images, labels, settings, path, state):
        """state: what an interrupted evaluation left in the file `path`, or None."""
        self.model, self.images, self.labels = model, images, labels
        self.settings, self.path = settings, path
        self.robust = models.predict(model, images) == labels  # [n]
        self.clean, self.largest, self.seconds = int(self.robust.sum()), 0.0, 0.0
        self.per_attack, self.todo, self.done = {}, None, 0  # todo: ids the attack is for
        for name, value in (state or {}).items():
            setattr(self, name, value.to(labels.device) if torch.is_tensor(value) else value)
        self.save()

    def run(self, names):
        for name in [name for name in names if name not in self.per_attack]:
            if self.todo is None:
                self.todo, self.done = self.robust.nonzero().flatten(), 0
            n, batch_size = len(self.todo), self.settings["batch_size"]
            with tqdm(total=n, initial=self.done, desc=name, unit="img", disable=None) as bar:
                while self.done < n:
                    ids = self.todo[self.done:][:batch_size]
                    try:
                        self.batch(name, ids)
                    except (RuntimeError, MemoryError) as error:
                        batch_size = memory.halved(len(ids), error)
                        continue
                    bar.update(len(ids))
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
            raise RuntimeError(f"the result is void: {name} left the ball or the box (distance "
                               f"{distance})")
        self.largest = max(self.largest, distance)
        with torch.no_grad():
            self.robust[ids] = self.model(adv).argmax(1) == y
        self.done += len(ids)
        self.seconds += time.perf_counter() - start
        self.save()

    def save(self):
        kept = ("settings", "robust", "per_attack", "todo", "done", "largest", "seconds")
        state = {name: getattr(self, name) for name in kept}
        files.write_state(self.path, state)


def interval(count, n):
    """Wilson's 95 % score interval for a proportion, as [low, high]."""
    return list(binomtest(count, n).proportion_ci(method="wilson"))


def attack_names(text):
    names = text.split(",")
    if unknown := [name for name in names if name not in ATTACKS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ATTACKS)}")
    return names


def parse(argv):
    parser = cli.Parser(__doc__)
    flag = parser.add_argument
    flag("run", nargs="?", help="a finished run's directory")
    flag("--weights", metavar="FILE", help="instead of a run: a state dict, .pth or .safetensors")
    flag("--dataset", choices=data.NAMES, help="with --weights: what to evaluate on")
    flag("--model", type=settings.model_name, help="with --weights: as for train.py")
    flag("--width", type=cli.positive_int, help="with --weights: as for train.py")
    flag("--image-size", type=cli.positive_int, metavar="PIXELS",
         help="with --weights and --dataset folder: side of the images "
              f"({recipes.shown('image_size')})")
    flag("--skip-bad", action="store_true",
         help="with --weights and --dataset folder: leave out images that are broken")
    flag("--attack", type=attack_names, default=["pgd", "autoattack"], metavar="A,B",
         help=f"of {', '.join(ATTACKS)} (pgd,autoattack)")
    flag("--n", type=cli.positive_int, help="the first N test images (1000; with "
         "--attack clean alone, all)")
    flag("--epsilon", type=cli.budget, help="l-inf budget, such as 8/255 (as trained)")
    flag("--batch-size", type=cli.positive_int, default=500, help="images at a time (500)")
    flag("--seed", type=cli.seed, default=0, help="of the attacks (0)")
    flag("--data-dir", help="where the data sets are (as for the run, or data)")
    flag("--cache-dir", metavar="DIR", help="where decoded images are kept (as for the run)")
    flag("--out", metavar="FILE", help="the new JSON file")
    flag("--trust-code", action="store_true",
         help="execute network code that the run brings along")
    flag("--device", help="cpu, cuda, cuda:1 (the GPU if there is one)")
    args = parser.parse_args(argv)
    args.command = cli.command("evaluate.py", argv)
    if bool(args.run) == bool(args.weights):
        parser.error("name a run's directory, or --weights FILE with its --dataset")
    if args.weights and not args.dataset:
        parser.error("--weights needs --dataset")
    for name in ("dataset", "model", "width", "image_size", "skip_bad"):
        if args.run and getattr(args, name):
            parser.error(f"--{name.replace('_', '-')} is for --weights; a run has it recorded")
    if args.weights and args.dataset != "folder" and (args.image_size or args.skip_bad):
        parser.error("--image-size and --skip-bad are for --dataset folder")
    return args


def subject(args, device):
    """(model, data set, budget) of the run or the weights file."""
    if args.run:
        config = runs.config(args.run)
        model, trained = saved.from_run(args.run, config, args.trust_code), config["args"]
        dataset = data.of_run(trained, args.data_dir, device, train=False,
                              cache_dir=args.cache_dir)
        if len(dataset.classes) != trained["network"]["classes"]:
            raise cli.UserError(f"{args.run} was trained on {trained['network']['classes']} "
                                f"classes, but the test set has {len(dataset.classes)}")
        eps = trained["epsilon"]
    else:
        dataset = data.load(args.dataset, args.data_dir or "data", 0, device, args.image_size,
                            args.skip_bad, cache_dir=args.cache_dir)
        shape = dataset.test_images.shape
        model = models.build(**settings.network(args, shape[1], len(dataset.classes), shape[-1]))
        models.load_weights(model, args.weights)
        eps = recipes.RECIPES[args.dataset]["epsilon"]
    if args.epsilon is not None:
        eps = args.epsilon
    return model.to(device).eval().requires_grad_(False), dataset, eps


def output(out, stem, used):
    """(file to write, its state file, the state to continue from or None).

    The file is `out`, or the first of stem.json, stem-2.json, ... that does not exist, that no
    other process writes, and whose state file, if any, has these settings.
    """
    if out:
        runs.check_output(out)
    else:
        Path(stem).parent.mkdir(exist_ok=True)
    names = [out] if out else (f"{stem}-{i}.json" if i > 1 else f"{stem}.json"
                               for i in itertools.count(1))
    for path in map(Path, names):
        if path.exists():
            continue
        state = path.with_suffix(".state")
        try:
            locks.lock(path.with_suffix(".lock"), f"{path}")
            found = files.progress(state)
        except OSError as error:
            raise cli.UserError(f"{path} cannot be written ({error.strerror}); give --out FILE "
                                "in another folder") from None
        except cli.UserError:  # another process writes it
            if out:
                raise
            continue
        if found is None or found["settings"] == used:
            return path, state, found
    raise cli.UserError(f"{out} is being written, or {Path(out).with_suffix('.state')} belongs to "
                        "other settings; give another --out")


@cli.script
def main(argv=None):
    args = parse(argv)
    cli.if_interrupted(lambda: "the same command continues the evaluation")
    if args.out:
        runs.check_output(args.out)
    device = cli.device(args.device)
    model, dataset, eps = subject(args, device)
    n = args.n or (len(dataset.test_labels) if args.attack == ["clean"] else 1000)
    n = min(n, len(dataset.test_labels))
    classes, recipe = len(dataset.classes), recipes.RECIPES[dataset.name]
    used = {
        "weights": saved.fingerprint(model), "dataset": dataset.name, "n": n,
        "attacks": members(args.attack, classes), "epsilon": eps,
        "step": recipe["eval_alpha"] * eps, "seed": args.seed, "batch_size": args.batch_size}
    stem = f"{args.run}/eval" if args.run else f"runs/{Path(args.weights).stem}"
    stem += f"-{'+'.join(args.attack)}-{n}"
    stem += f"-eps{args.epsilon:.4g}" if args.epsilon is not None else ""
    stem += f"-s{args.seed}" if args.seed else ""
    out, state, found = output(args.out, stem, used)

    evaluation = Evaluation(model, dataset.test_images.narrow(0, 0, n), dataset.test_labels[:n],
                            used, state, found)
    evaluation.run(used["attacks"])
    count = int(evaluation.robust.sum())
    record = {
        "source": args.run or args.weights, "dataset": dataset.name,
        "attack": ",".join(args.attack), "n": n, "epsilon": eps,
        "clean_accuracy": evaluation.clean / n, "robust_accuracy": count / n,
        "robust_count": count, "per_attack": evaluation.per_attack,
        "seconds": evaluation.seconds, "max_perturbation": evaluation.largest,
        "clean_interval": interval(evaluation.clean, n), "robust_interval": interval(count, n),
        "seed": args.seed}
    if "autoattack" in args.attack:
        record["standard"] = classes not in FEW_CLASSES
    report(record)
    files.write_json(out, {**record, "command": args.command, **runs.environment(device)})
    state.unlink(missing_ok=True)
    return record


def report(record):
    n, (low, high) = record["n"], record["robust_interval"]
    print("{source}: {n:,} test images of {dataset}, eps = {epsilon:.4g}".format(**record))
    print(f"{'clean':>12} {record['clean_accuracy']:.4f}")
    for name, counts in record["per_attack"].items():
        print(f"{name:>12} {counts['robust_count'] / n:.4f}  "
              f"({counts['broken']} of {counts['attacked']} broken)")
    if record.get("standard") is False:
        print("not AutoAttack standard: apgd-t is not defined for so few classes")
    print(f"robust accuracy {record['robust_accuracy']:.4f} (95 % interval {low:.4f} to "
          f"{high:.4f}); largest perturbation {record['max_perturbation']:.6f}; "
          f"{record['seconds']:.1f} s")


if __name__ == "__main__":
    main()
