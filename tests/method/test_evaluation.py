"""Evaluation: the verdicts are those of plain pyautoattack; intervals; parts; warnings."""
import pytest
import torch
from conftest import shorter
from pyautoattack import AutoAttack

from advprune import attacks, checkpoint, data, evaluation, models, run, weights

N = 12


@pytest.fixture
def subject(trained):
    """(model, images uint8, labels, eps) of a trained run."""
    folder = trained()
    settings = run.read_config(folder)["settings"]
    model = weights.of_run(folder).eval().requires_grad_(False)
    dataset = data.of_run(settings, train=False)
    return model, dataset.test_images[:N], dataset.test_labels[:N], settings.epsilon


def test_wilson_interval_against_published_values():
    for counts, published in {(81, 263): [0.2553, 0.3662], (0, 20): [0, 0.1611],
                              (29, 29): [0.8830, 1]}.items():  # Newcombe 1998
        assert evaluation.interval(*counts) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(("name", "channels"), [("mnist-net", 1), ("preactresnet18", 3)])
def test_parts_change_neither_logits_nor_gradients(name, channels, monkeypatch):
    torch.manual_seed(0)
    model = models.build(name, channels, width=2, size=32).eval()
    x, y = torch.rand(20, channels, 32, 32), torch.arange(20) % 10
    wanted = model(x), attacks.input_grad(model, x, y)
    seen, parts = [], evaluation.InParts(model)
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    for size in (1, 7, 20, 99):
        monkeypatch.setattr(evaluation, "PART", size)
        seen.clear()
        found = parts(x), attacks.input_grad(parts, x, y)
        for mine, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
        assert max(seen) == min(size, 20) and sum(seen) == 40
    assert parts(x[:0]).shape == (0, 10)


@pytest.mark.parametrize("part", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_verdicts_are_those_of_plain_autoattack(subject, monkeypatch, tmp_path, part):
    model, images, labels, eps = subject
    monkeypatch.setattr(evaluation, "AutoAttack", shorter(part))
    plain = shorter(part)(model, eps=eps, seed=1)
    adv, _ = plain.run_standard_evaluation(images.float() / 255, labels, batch_size=7)
    wanted = model(adv).argmax(1) == labels
    monkeypatch.setattr(evaluation, "PART", 5)
    settings = {"attacks": list(evaluation.STANDARD), "epsilon": eps, "step": 0.01, "seed": 1,
                "batch_size": 7}
    work = evaluation.Evaluation(model, images, labels, settings,
                                 checkpoint.State(tmp_path / "state"))
    work.run()
    assert torch.equal(work.robust, wanted)
    assert 0 < wanted.sum() < work.right.sum()


def test_the_draws_are_those_of_pyautoattack(subject):
    model, images, y, eps = subject
    x = images.float() / 255
    x, y = x[model(x).argmax(1) == y], y[model(x).argmax(1) == y]
    plain = AutoAttack(model, eps=eps, seed=5)
    plain.attacks_to_run = ["apgd-ce"]
    wanted, _ = plain.run_standard_evaluation(x, y, batch_size=len(x))
    ids = torch.arange(len(x))
    assert torch.equal(evaluation.perturb("apgd-ce", model, x, y, ids, eps, 0.01, 5), wanted)
    assert not torch.equal(evaluation.perturb("apgd-ce", model, x, y, ids, eps, 0.01, 6), wanted)


# --- networks that mislead attacks, or fail

class Toy(torch.nn.Module):
    """Two logits: what `change` makes of the first pixel minus a half, and its negative."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        level = self.change(x.flatten(1)[:, :1] - 0.5)
        return torch.cat([level, -level], 1)


class Random(Toy):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 2) / 100


class Probabilities(Toy):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Purified(Toy):
    """It moves the image along a gradient before it classifies."""

    def forward(self, x):
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            grad = torch.autograd.grad(super().forward(start)[:, 0].sum(), start)[0]
        return super().forward(x + 0.01 * grad)


NETWORKS = {
    "": Toy(lambda level: level), "other logits": Random(lambda level: level),
    "probabilities": Probabilities(lambda level: level),
    "computes gradients": Purified(lambda level: level),
    "no gradient": Toy(lambda level: level.detach().sign() + 0 * level),
    "at some images": Toy(lambda level: level.where(level < 2, torch.nan * level))}  # it is NaN


def judged(model, folder, *names):
    """The Evaluation of a toy, by these attacks, of 12 images on both sides of the boundary."""
    images = torch.tensor([118, 120, 126, 129, 136, 138] * 2, dtype=torch.uint8).view(12, 1, 1, 1)
    settings = {"attacks": list(names), "epsilon": 0.05, "step": 0.02, "seed": 0, "batch_size": 4}
    work = evaluation.Evaluation(model, images, (images.flatten() < 128).long(), settings,
                                 checkpoint.State(folder / "state"))
    work.run()
    return work


@pytest.mark.parametrize("attack", ["fgsm", "apgd-ce"])
@pytest.mark.parametrize("words", NETWORKS)
def test_networks_that_mislead_attacks_are_named_once(words, attack, tmp_path, capsys):
    work = judged(NETWORKS[words], tmp_path, attack)
    said = capsys.readouterr().err
    assert len(work.warnings) == (words != "") and ".md" not in said
    for sentence in work.warnings:
        assert words in sentence and said.count(sentence) == 1
    assert checkpoint.State(tmp_path / "state").read()["warnings"] == work.warnings


def test_what_square_breaks_after_the_others_is_said(tmp_path):
    work = judged(NETWORKS["no gradient"], tmp_path, "apgd-ce", "square")
    broken = work.per_attack["square"]["broken"]
    assert broken > 0 and len(work.warnings) == 2
    assert f"square, which needs no gradient, broke {broken / 12:.1%}" in work.warnings[1]


@pytest.mark.parametrize("attack", ["fgsm", "pgd-50-10"])
def test_an_image_at_which_the_network_fails_is_broken(attack, tmp_path):
    def between(level):  # it knows the 256 values of a byte, and nothing between them
        byte = 255 * (level + 0.5)
        return level.where((byte - byte.round()).abs() < 1e-3, torch.nan)

    work = judged(Toy(between), tmp_path, attack)
    assert work.right.all() and not work.robust.any()
    assert work.warnings == [evaluation.NO_CLASS]
