"""Attacks within a budget stay in ball and box, find what there is, and leave no trace."""
import numpy as np
import pytest
import torch

from advprune import attacks, evaluation, models, pruning


def linear_model():
    """Two classes apart along one known direction, so that every attack's optimum is known."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False))
    weight = torch.linspace(-1, 1, 16)
    model[1].weight.data = torch.stack([weight, -weight])
    return model, 2 * weight


@pytest.mark.parametrize("eps", [0.1, torch.tensor([0.02, 0.1, 0.3] * 10)])
def test_pgd_stays_in_ball_and_box_and_reaches_the_corner(eps):
    model, gap = linear_model()
    x, y = torch.rand(30, 1, 4, 4), torch.zeros(30, dtype=torch.long)
    adv = attacks.pgd(model, x, y, torch.arange(30), eps=eps, alpha=0.05, steps=20, restarts=2)
    radius = torch.as_tensor(eps).expand(30).view(30, 1, 1, 1)
    assert ((adv - x).abs() <= radius + 1e-6).all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    corner = (x - radius * gap.sign().view(4, 4)).clamp(0, 1)  # the exact worst case
    lost = model(corner).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, lost)
    whole = ~lost
    torch.testing.assert_close(adv[whole], corner[whole])


def test_fgsm_is_one_full_step():
    model, gap = linear_model()
    x, y = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.long)
    adv = evaluation.perturb("fgsm", model, x, y, torch.arange(8), 0.07, None, 0)
    torch.testing.assert_close(adv, (x - 0.07 * gap.sign().view(4, 4)).clamp(0, 1))


def test_attacks_leave_the_model_as_it_was():
    model = models.build("preactresnet18", 3, width=2, size=32).train()
    model.layer1.eval()
    model.linear.weight.requires_grad_(False)
    x, y, ids = torch.rand(4, 3, 32, 32), torch.arange(4), torch.arange(4)
    modes = [module.training for module in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="boom"), attacks.evaluating(model):
        attacks.rs_fgsm(model, x, y, ids, eps=0.1, alpha=0.1, seed=0, epoch=0)
        attacks.pgd(model, x, y, ids, eps=0.1, alpha=0.02, steps=2)
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(module.training for module in model.modules())
        raise RuntimeError("boom")
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attacks.deepfool(model, x, y, steps=3)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    attacks.input_grad(model, x, y)
    assert all(p.grad is None for p in model.parameters())


# --- what an attack is given, and what a network predicts

# Seeded: bfloat16 turns the sign of a gradient near zero on about one draw in fifty.
X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y, IDS = torch.tensor([0, 1, 0, 1, 0, 1]), torch.arange(6)
CALLS = {  # name -> a call of (model, x, y, eps, alpha)
    "rs_fgsm": lambda m, x, y, eps, alpha: attacks.rs_fgsm(m, x, y, IDS, eps=eps, alpha=alpha),
    "pgd": lambda m, x, y, eps, alpha: attacks.pgd(m, x, y, IDS, eps=eps, alpha=alpha, steps=5,
                                                   restarts=2),
    "pgd_kl": lambda m, x, y, eps, alpha: attacks.pgd_kl(m, x, IDS, eps=eps, alpha=alpha, steps=5),
    "deepfool": lambda m, x, y, eps, alpha: attacks.deepfool(m, x, y),
    "loss": lambda m, x, y, eps, alpha: pruning.score(m, x, y, "loss", eps=eps, alpha=alpha),
    "clean-loss": lambda m, x, y, eps, alpha: pruning.score(m, x, y, "clean-loss"),
    "margin": lambda m, x, y, eps, alpha: pruning.score(m, x, y, "margin"),
    **{name: lambda m, x, y, eps, alpha, name=name: evaluation.perturb(
        name, m.eval().requires_grad_(False), x, y, IDS, eps, alpha, 0)
       for name in ("fgsm", "pgd-50-10", "apgd-ce")}}


def calls_but(*names):
    return pytest.mark.parametrize("call", [name for name in CALLS if name not in names])


@calls_but()
@pytest.mark.parametrize("x", [torch.randn(6, 1, 4, 4), 255 * X, X.index_fill(0, Y[:1], torch.nan),
                               (255 * X).long(), X > 0.5, (-X).half()],
                         ids=["normalised", "0-255", "NaN", "int64", "bool", "half"])
def test_other_images_are_refused(call, x):
    with pytest.raises(ValueError, match=r"uint8, or floats in \[0, 1\]"):
        CALLS[call](linear_model()[0], x, Y, 0.1, 0.1)


@calls_but("deepfool", "clean-loss", "margin")
@pytest.mark.parametrize(("eps", "words"), [
    (8, "give 8/255, not 8"), (-0.1, "eps is"), (float("nan"), "eps is")])
def test_other_budgets_are_refused(call, eps, words):
    with pytest.raises(ValueError, match=words):
        CALLS[call](linear_model()[0], X, Y, eps, 0.1)


@pytest.mark.parametrize("call", ["rs_fgsm", "pgd", "pgd_kl"])
@pytest.mark.parametrize(("eps", "words"), [
    (torch.tensor([0.1] * 5 + [8]), "give 8/255"), (torch.tensor([0.1] * 5 + [torch.nan]), "eps"),
    (torch.full((3,), 0.1), "one for each of the 6 images")])
def test_one_other_budget_of_many_is_refused(call, eps, words):
    with pytest.raises(ValueError, match=words):
        CALLS[call](linear_model()[0], X, Y, eps, 0.1)


@pytest.mark.parametrize("how", [dict(steps=-1), dict(steps=1, restarts=0)])
def test_a_number_of_steps_that_is_none_is_refused(how):
    with pytest.raises(ValueError, match="0 steps or more and 1 restart or more"):
        attacks.pgd(linear_model()[0], X, Y, IDS, eps=0.1, alpha=0.1, **how)


@pytest.mark.parametrize("call", ["rs_fgsm", "pgd", "pgd_kl", "loss", "pgd-50-10"])
@pytest.mark.parametrize("alpha", [-0.1, 10, float("nan"), float("inf"),
                                   torch.tensor([-1.0] * 6)])
def test_other_steps_are_refused(call, alpha):
    with pytest.raises(ValueError, match="alpha is the step"):
        CALLS[call](linear_model()[0], X, Y, 0.1, alpha)


@calls_but("pgd_kl")
def test_labels_are_whole_numbers_of_any_type_from_0_on(call):
    model, _ = linear_model()
    wanted = CALLS[call](model, X, Y, 0.1, 0.1)
    for kind in (torch.int32, torch.int16, torch.uint8, torch.uint16):
        found = CALLS[call](model, X, Y.to(kind), 0.1, 0.1)
        assert all(map(torch.equal, found, wanted))
    for y, words in ((Y.float(), "whole numbers"), (Y[:5], "6 images but 5 labels"),
                     (Y - 100, "-100 is negative"), (Y + 5, "the label 6 is no class"),
                     (torch.eye(2)[Y], "whole numbers")):
        with pytest.raises(ValueError, match=words):
            CALLS[call](model, X, y, 0.1, 0.1)


@calls_but()
def test_inference_mode_is_refused_in_words(call):
    with torch.inference_mode(), pytest.raises(ValueError, match="outside of it"):
        CALLS[call](linear_model()[0], X, Y, 0.1, 0.1)


@calls_but()
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_networks_of_half_precision_are_attacked_as_in_float32(call, kind):
    model, _ = linear_model()
    wanted = CALLS[call](model, X, Y, 0.1, 0.05)
    found = CALLS[call](model.to(kind), X, Y, 0.1, 0.05)
    found, wanted = (part.distance if call == "deepfool" else part for part in (found, wanted))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", [
    torch.tensor, lambda value: torch.tensor([value]), np.float32,
    lambda value: torch.full((6, 1, 1, 1), value), lambda value: np.full(6, value, np.float32),
    lambda value: [value] * 6], ids=["tensor", "[1]", "float32", "[B, 1, 1, 1]", "array", "list"])
def test_a_budget_may_be_any_number_or_one_for_each_image(kind):
    model, _ = linear_model()
    for call in ("rs_fgsm", "pgd", "pgd_kl"):
        assert torch.equal(CALLS[call](model, X, Y, kind(0.1), kind(0.05)),
                           CALLS[call](model, X, Y, 0.1, 0.05))


@calls_but()
def test_images_may_be_arrays(call):
    model, _ = linear_model()
    found, wanted = (CALLS[call](model, x, Y, 0.1, 0.05) for x in (X.numpy(), X))
    assert all(map(torch.equal, found, wanted))


def test_predictions_are_of_bytes_or_of_floats_in_0_1():
    model, x = linear_model()[0], (255 * X).round() / 255
    wanted = models.predict(model, (255 * x).byte())
    for images in (x, x.double(), x.numpy()):
        assert torch.equal(models.predict(model, images), wanted)
    for images in (255 * x, x - 0.5, (255 * x).long()):
        with pytest.raises(ValueError, match=r"uint8, or floats in \[0, 1\]"):
            models.predict(model, images)


INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize(("logits", "found"), [
    ([1, 2, 2], 1), ([-INF, 2, -INF], 1), ([0, -INF, -1], 0), ([NAN] * 3, -1), ([5, 1, NAN], -1),
    ([5, INF, 1], -1), ([-INF] * 3, -1)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_prediction_or_none(logits, found, kind):
    assert attacks.predicted(torch.tensor([logits, [3, 0, 0]], dtype=kind)).tolist() == [found, 0]
