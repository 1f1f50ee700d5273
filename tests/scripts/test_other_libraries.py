"""A trained run under foolbox, torchattacks and ART: the accuracy that evaluate.py reports.

Each gets the network that advprune.load gives, and images in [0, 1].
"""
import pytest
import torch

import advprune
import evaluate
import train
from advprune import data

N = 200
HOW = "pip install '.[others]' brings it"


def foolbox(model, eps, step):
    library = pytest.importorskip("foolbox", reason=HOW)
    wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = (library.attacks.LinfPGD(abs_stepsize=step, steps=50) if step else
              library.attacks.LinfFastGradientAttack())
    return lambda images, labels: attack(wrapped, images, labels, epsilons=eps)[1]


def torchattacks(model, eps, step):
    library = pytest.importorskip("torchattacks", reason=HOW)
    return library.PGD(model, eps, step, steps=50) if step else library.FGSM(model, eps)


def art(model, eps, step):
    evasion = pytest.importorskip("art.attacks.evasion", reason=HOW)
    from art.estimators.classification import PyTorchClassifier

    wrapped = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (1, 28, 28), 10,
                                clip_values=(0, 1), device_type="cpu")
    attack = (evasion.ProjectedGradientDescent(wrapped, eps=eps, eps_step=step, max_iter=50,
                                               num_random_init=1, verbose=False) if step else
              evasion.FastGradientMethod(wrapped, eps=eps))
    return lambda images, labels: torch.tensor(attack.generate(images.numpy(), labels.numpy()))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    train.main(["--dataset", "digits", "--epochs", "6", "--out", str(folder)])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "restarts", "apart"), [("fgsm", 1, 0), ("pgd", 10, 2)])
@pytest.mark.parametrize("library", [foolbox, torchattacks, art])
def test_others_find_the_accuracy_that_we_report(library, attack, restarts, apart, run):
    """apart: by how many images. PGD's random starts differ."""
    ours = evaluate.main([str(run), "--attack", attack, "--n", str(N), "--out", "ours.json"])
    model, dataset = advprune.load(run), data.load("digits")
    images, labels = dataset.test_images[:N].float() / 255, dataset.test_labels[:N]
    theirs = library(model, ours["epsilon"], ours["settings"]["step"] if restarts > 1 else None)
    right = [model(theirs(images, labels)).argmax(1) == labels for _ in range(restarts)]
    count = int(torch.stack(right).all(0).sum())
    assert abs(count - ours["robust_count"]) <= apart
    assert 0.2 * N < count < ours["clean_accuracy"] * N - 5  # the attack has something to do
    print(f"{library.__name__} {attack}: {count}, ours {ours['robust_count']} of {N}")
