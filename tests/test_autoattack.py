"""AutoAttack with less work: the verdicts of plain pyautoattack, whatever the chunks."""
import pytest
import torch
from pyautoattack import AutoAttack
from pyautoattack.fab_projections import projection_linf
from pyautoattack.square import SquareAttack

from advprune import attacks, chunks, data, evaluation, members, models, runs, saved

N = 20


@pytest.fixture(scope="module")
def subject(trained):
    """(model, images uint8, labels, eps) of a trained run."""
    run = trained()
    config = runs.config(run)
    model = saved.from_run(run, config).eval().requires_grad_(False)
    dataset = data.of_run(config["args"], None, torch.device("cpu"), train=False)
    return model, dataset.test_images[:N], dataset.test_labels[:N], config["args"]["epsilon"]


@pytest.mark.parametrize("size", [0, 1, 4, 7, 20, 99])
@pytest.mark.parametrize(("name", "channels"), [("mnist-net", 1), ("preactresnet18", 3)])
def test_chunks_change_neither_logits_nor_gradients(name, channels, size):
    torch.manual_seed(0)
    model = models.build(name, channels, width=2, size=32).eval()
    x, y = torch.rand(20, channels, 32, 32), torch.arange(20) % 10
    wanted = model(x), attacks.input_grad(model, x, y)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    parts = chunks.Chunks(model, size)
    found = parts(x), attacks.input_grad(parts, x, y)
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)
    assert max(seen) == min(size or 20, 20) and sum(seen) == 40
    assert parts(x[:0]).shape == (0, 10)


def test_the_fastest_chunk_wins(monkeypatch):
    model, x = models.build("preactresnet18", 3, width=2, size=8).eval(), torch.rand(300, 3, 8, 8)
    for best in (64, 300):
        monkeypatch.setattr(chunks, "_seconds", lambda chunk, x, best=best:
                            len(x) / (2 if len(x) == best else 1))
        assert chunks.fastest(model, x).size == (0 if best == 300 else best)
    assert chunks.fastest(model, x[:5]).size == 0


@pytest.mark.parametrize("flat", [False, True])
def test_projections_are_pyautoattacks(flat):
    torch.manual_seed(0)
    points, w = torch.rand(400, 3, 5, 5), torch.randn(400, 3, 5, 5)
    if flat:  # many pixels on the edge of the box, many without influence
        points, w = points.round(), w * (torch.rand_like(w) < 0.3)
    excess = torch.randn(400) * torch.logspace(-4, 2, 400)  # small ones, and out of reach
    excess[:3] = 0
    b = (w * points).flatten(1).sum(1) - excess
    wanted = projection_linf(points.flatten(1), w.flatten(1), b).view_as(points)
    step = members.project(points, w, excess)
    torch.testing.assert_close(step, wanted, rtol=1e-3, atol=1e-5)
    missed = (w * step).flatten(1).sum(1) + excess
    reached = missed.abs() < 1e-4 * (1 + excess.abs())
    assert 100 < reached.sum() < 400
    moved = (points + step)[~reached]
    assert (((moved < 1e-6) | (moved > 1 - 1e-6)) | (w[~reached] == 0)).all()


def test_square_takes_the_same_way_with_fewer_looks(subject):
    model, images, y, eps = subject
    x, looks = images.float() / 255, []

    def counted(x):
        looks.append(len(x))
        return model(x)

    found, total = [], []
    for kind in (SquareAttack, members.Square):
        looks.clear()
        attack = kind(counted, eps=eps, seed=3, n_queries=600, resc_schedule=False)
        found.append(attack.perturb(x, y))
        total.append(sum(looks))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
    assert (found[1] != x).flatten(1).any(1).sum() > 0
    assert total[1] < 0.95 * total[0]


@pytest.mark.parametrize(("batch_size", "chunk"), [(500, 7), (12, 5)])
def test_verdicts_are_those_of_plain_autoattack(subject, monkeypatch, tmp_path, batch_size, chunk):
    model, images, labels, eps = subject
    plain = AutoAttack(model, eps=eps, seed=1)
    adv, _ = plain.run_standard_evaluation(images.float() / 255, labels, batch_size=batch_size)
    wanted = model(adv).argmax(1) == labels
    monkeypatch.setattr(chunks, "fastest", lambda model, x: chunks.Chunks(model, chunk))
    settings = {"attacks": list(members.STANDARD), "epsilon": eps, "step": 0.01, "seed": 1,
                "batch_size": batch_size}
    work = evaluation.Evaluation(model, images, labels, settings, tmp_path / "state", None)
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
    assert torch.equal(members.perturb("apgd-ce", model, x, y, eps, 5), wanted)
    assert not torch.equal(members.perturb("apgd-ce", model, x, y, eps, 6), wanted)
