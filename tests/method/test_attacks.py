"""Attacks within a budget stay in ball and box, find what there is, and leave no trace."""
import pytest
import torch

from advprune import attacks, evaluation, models


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


def test_targeted_attacks_of_four_classes_stay_in_the_ball():
    model, _ = linear_model()
    wide = torch.nn.Sequential(model, torch.nn.Linear(2, 4)).eval().requires_grad_(False)
    x = torch.rand(6, 1, 4, 4)
    y = wide(x).argmax(1)
    for name in ("apgd-t", "fab-t"):
        adv = evaluation.perturb(name, wide, x, y, torch.arange(6), 0.3, None, 0)
        assert (adv - x).abs().max() <= 0.3 + 1e-6


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
    attacks.input_grad(model, x, y)
    assert all(p.grad is None for p in model.parameters())
