"""DeepFool on models whose margins are known, then on a trained one."""
import numpy as np
import pytest
import torch

from advprune import attacks, data, models, pruning

NORMS = ["linf", "l2"]


def linear(weight, bias):
    layer = torch.nn.Linear(weight.shape[1], len(weight))
    layer.weight.data, layer.bias.data = weight, bias
    return torch.nn.Sequential(torch.nn.Flatten(), layer)


def exact_margins(model, x, y, norm):
    """min_k |f_k - f_y| / ||w_k - w_y||_dual in float64: the closed form without a box."""
    weight, bias = model[1].weight.detach().double(), model[1].bias.detach().double()
    logits = x.flatten(1).double() @ weight.T + bias
    slopes = weight[None] - weight[y][:, None]
    sizes = torch.linalg.vector_norm(slopes, 1 if norm == "linf" else 2, 2)
    away = (logits - logits.gather(1, y[:, None])).abs() / sizes
    return away.scatter(1, y[:, None], torch.inf).amin(1)


def length(way, norm):
    return torch.linalg.vector_norm(way.flatten(1), torch.inf if norm == "linf" else 2, 1)


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [
    (torch.float32, 1e-4, 1e-6), (torch.float64, 1e-6, 1e-10)])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_models_have_their_closed_form(norm, dtype, rtol, atol):
    for classes in (2, 3, 10, 100):
        torch.manual_seed(classes)
        model = linear(torch.randn(classes, 48), torch.randn(classes)).to(dtype)
        x = torch.rand(200, 3, 4, 4, dtype=dtype)
        y = model(x).argmax(1)
        found = attacks.deepfool(model, x, y, norm, clip=False)
        exact = exact_margins(model, x, y, norm)
        # The absolute part is the rounding of the logits.
        torch.testing.assert_close(found.distance.double(), exact, rtol=rtol, atol=atol)
        assert found.crossed.all()
        assert torch.equal(model(found.adv).argmax(1), found.target)
        assert (found.target != y).all()
        torch.testing.assert_close(length(found.adv - x, norm), found.distance, rtol=1e-5,
                                   atol=2e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_margins_near_zero(norm):
    """Also where class and rival tie, so that the linearised boundary is no step away."""
    model = linear(torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([0.0, 0.0]))
    for gap in (1e-1, 1e-3, 1e-5, 0.0):
        x = torch.tensor([[0.6 + 2 * gap, 0.1]]).view(1, 1, 1, 2)  # f = 0.5 + 2 gap, 0.5 + gap
        exact = exact_margins(model, x, torch.tensor([0]), norm)
        found = attacks.deepfool(model, x, torch.tensor([0]), norm)
        torch.testing.assert_close(found.distance.double(), exact, rtol=1e-4, atol=1.2e-7)
        assert found.crossed, gap
        assert model(found.adv).argmax(1) == found.target == 1


def test_worked_case_in_two_dimensions():
    # f = (x, 1 - x, y / 4): from (0.8, 0.6) class 1 is at x = 1/2, so 0.3 away in both norms;
    # class 2, at x = y / 4, is 0.65 / 1.25 away in l-infinity and 0.65 / 1.03 in l2.
    model = linear(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.25]]), torch.tensor([0.0, 1, 0]))
    x = torch.tensor([0.8, 0.6]).view(1, 1, 1, 2)
    for norm in NORMS:
        found = attacks.deepfool(model, x, torch.tensor([0]), norm)
        assert found.distance.item() == pytest.approx(0.3, rel=1e-6)
        assert (found.target.item(), found.iterations.item()) == (1, 1)
    assert found.adv.flatten().tolist() == pytest.approx([0.5, 0.6], rel=1e-6)
    other = attacks.deepfool(model, x, torch.tensor([1]))  # misclassified: nothing to walk
    assert (other.distance.item(), other.iterations.item(), other.crossed.item()) == (0, 0, True)
    assert other.target.item() == 0
    assert torch.equal(other.adv, x)


def test_the_class_is_that_of_the_boundary_not_of_the_overshoot():
    # f = (0.5 - x, 0, 2 x - 1.2): class 0 below 1/2, 1 up to 0.6, 2 beyond.
    model = linear(torch.tensor([[-1.0], [0.0], [2.0]]), torch.tensor([0.5, 0.0, -1.2]))
    x, y = torch.tensor([0.3]).view(1, 1, 1, 1), torch.tensor([0])
    found = attacks.deepfool(model, x, y, overshoot=1.0)
    assert found.distance.item() == pytest.approx(0.2, rel=1e-5)
    assert found.target.item() == model(found.adv).argmax(1).item() == 1


def test_clip_keeps_the_box_where_the_boundary_is_around_a_corner():
    # The boundary x + y = 0.3 is 0.3 away along each axis; but y is 0 and cannot fall.
    model = linear(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 0.3]))
    x = torch.tensor([0.9, 0.0]).view(1, 1, 1, 2)
    y = torch.tensor([0])
    for norm, free in (("linf", 0.3), ("l2", 0.6 / 2**0.5)):
        found = attacks.deepfool(model, x, y, norm)
        assert found.distance.item() == pytest.approx(0.6, rel=1e-5)
        assert found.adv.min() >= 0
        assert attacks.deepfool(model, x, y, norm, clip=False).distance.item() == (
            pytest.approx(free, rel=1e-5))


def test_a_pixel_held_at_the_box_comes_back_at_once():
    """Its first steps lead out of the box; were they remembered, later ones would undo them."""
    wrapped = torch.nn.Module()

    def model(x):  # f_0 - f_1 falls with y beyond x = 1/2, and rises with it before
        a, b = x.flatten(1).unbind(1)
        gap = torch.where(a > 0.5, a + b - 0.2, a - b + 0.3)
        return torch.stack([gap, 0 * gap], 1)

    wrapped.forward = model
    x = torch.tensor([0.9, 0.0]).view(1, 1, 1, 2)
    found = attacks.deepfool(wrapped, x, torch.tensor([0]))
    assert (found.iterations.item(), found.crossed.item()) == (3, True)


def test_what_cannot_be_crossed_and_what_is_not_finite():
    def model(x):  # logits by the first pixel: flat below 0.5, else not finite
        level = x.flatten(1)[:, :1]
        return torch.cat([1 + 0 * level, torch.where(level < 0.5, 0.0, torch.nan)], 1)

    wrapped = torch.nn.Module()
    wrapped.forward = model
    x, y = torch.tensor([0.1, 0.7, 0.2]).view(3, 1, 1, 1), torch.tensor([0, 0, 1])
    found = attacks.deepfool(wrapped, x, y)
    assert found.crossed.tolist() == [False, False, True]
    assert found.iterations.tolist() == [0, 0, 0]
    np.testing.assert_equal(found.distance.tolist(), [0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="1 of the 3 margin scores"):
        pruning.score(wrapped, x, y, "margin")
    assert pruning.score(wrapped, x[::2], y[::2], "margin").tolist() == [1, 0]  # far, and wrong


@pytest.fixture(scope="module")
def digits():
    """(network trained on digits for 15 epochs, 200 test images, labels)."""
    torch.manual_seed(0)
    dataset = data.load("digits")
    model = models.build("mnist-net", 1, width=4)
    opt = torch.optim.Adam(model.parameters(), 5e-3)
    for epoch in range(15):
        for ids in data.shuffled(torch.arange(len(dataset.labels)), 0, epoch).split(100):
            loss = torch.nn.functional.cross_entropy(model(dataset.images[ids].float() / 255),
                                                     dataset.labels[ids])
            opt.zero_grad()
            loss.backward()
            opt.step()
    x, y = dataset.test_images[:200], dataset.test_labels[:200]
    assert (models.predict(model, x) == y).float().mean() > 0.9
    return model, x, y


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("clip", [True, False])
def test_every_crossing_is_one_and_its_near_side_is_not(digits, norm, clip):
    model, x, y = digits
    found = attacks.deepfool(model, x, y, norm, clip=clip)
    pixels = x.float() / 255
    with torch.no_grad():
        assert torch.equal(model(found.adv).argmax(1), found.target)
        assert torch.equal(found.target != y, found.crossed)
        assert found.crossed.float().mean() > 0.99
        walked = found.crossed & (found.distance > 0)
        near = pixels + 0.999 * (found.adv - pixels)
        assert (model(near).argmax(1) == y)[walked].all()
    torch.testing.assert_close(length(found.adv - pixels, norm), found.distance, rtol=1e-4,
                               atol=1e-6)
    wrong = models.predict(model, x) != y
    assert wrong.any()
    assert torch.equal(found.distance == 0, wrong)
    assert torch.equal(found.iterations == 0, wrong)
    if clip:
        assert found.adv.min() >= 0
        assert found.adv.max() <= 1


def test_margins_are_nearly_minimal(digits):
    """FGSM at 0.7 of the distance crosses for nearly none, at twice the distance for most."""
    model, x, y = digits
    margin = attacks.deepfool(model, x, y).distance
    with attacks.evaluating(model), torch.no_grad():
        adv = attacks.rs_fgsm(model, x, y, torch.arange(200), eps=0.7 * margin, alpha=0.7 * margin,
                              seed=0, epoch=0, noise_scale=0.0)
        assert (model(adv).argmax(1) == y)[margin > 0].float().mean() > 0.95
        far = attacks.rs_fgsm(model, x, y, torch.arange(200), eps=2 * margin, alpha=2 * margin,
                              seed=0, epoch=0, noise_scale=0.0)
        assert (model(far).argmax(1) != y).float().mean() > 0.9


@pytest.mark.parametrize("norm", NORMS)
def test_neither_the_batch_nor_the_type_of_x_matters(digits, norm):
    model, x, y = digits
    whole = attacks.deepfool(model, x, y, norm)
    parts = [attacks.deepfool(model, a.float() / 255, b, norm)
             for a, b in zip(x.split(37), y.split(37), strict=True)]
    parts = attacks.DeepFool(*map(torch.cat, zip(*parts, strict=True)))
    torch.testing.assert_close(parts.distance, whole.distance, rtol=1e-4, atol=1e-5)
    assert (parts.iterations != whole.iterations).sum() <= 2
    none = attacks.deepfool(model, x[:0], y[:0], norm)
    assert none.adv.shape == (0, 1, 28, 28)
    assert none.distance.shape == (0,)


def test_a_cap_ends_the_walk_and_fewer_classes_lengthen_it(digits):
    model, x, y = digits
    whole = attacks.deepfool(model, x, y, "l2")
    capped = attacks.deepfool(model, x, y, "l2", steps=2)
    late = whole.iterations > 2
    assert late.any()
    assert torch.equal(capped.crossed, ~late)
    assert capped.iterations.max() == 2
    assert (capped.distance[late] > 0).all()
    assert torch.equal(capped.target[late], y[late])
    pair = attacks.deepfool(model, x, y, "l2", classes=2)
    every = attacks.deepfool(model, x, y, "l2", classes=99)
    assert torch.equal(every.distance, whole.distance)
    assert pair.distance.mean() > whole.distance.mean()
    assert (pair.crossed & (pair.distance >= 0)).all()
