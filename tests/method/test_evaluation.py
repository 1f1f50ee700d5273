"""Evaluation: the verdicts are those of plain pyautoattack; intervals; parts."""
import pytest
import torch
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
    class Shorter(AutoAttack):  # of a part of the steps, which take long
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.apgd_targeted.n_iter //= part
            self.fab.n_iter //= part
            self.square.n_queries //= part

    model, images, labels, eps = subject
    monkeypatch.setattr(evaluation, "AutoAttack", Shorter)
    plain = Shorter(model, eps=eps, seed=1)
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
