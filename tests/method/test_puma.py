"""PUMA and the recipe it stands on: adapted budgets, margin models, TRADES, averaged weights."""
import dataclasses
import math

import killing
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TRAINED, refused, same, weights

import prune
import train
from advprune import attacks, config, data, models, ops, pruning, run
from advprune import weights as stored_weights

SYNTHETIC = ["--dataset", "synthetic", "--limit", "300"]
FEW = ["--limit", "200"]  # margins take long


def training_of(*flags, **changes):
    """(the Training of these flags, with these settings changed; what models.build takes)"""
    _, settings = config.parse([*SYNTHETIC, *flags])
    settings = dataclasses.replace(settings, **changes)
    return train.prepared(settings, torch.device("cpu"))[:2]


ATTACKS = {"rs-fgsm": ["--attack", "rs-fgsm"], "pgd": ["--attack", "pgd", "--pgd-steps", "4"],
           "trades": ["--loss", "trades", "--pgd-steps", "4"], "n-fgsm": ["--attack", "n-fgsm"]}


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_example_stays_within_its_own_budget(attack):
    training, _ = training_of(*ATTACKS[attack], "--prune", "puma", "--epoch", "1")
    training.epoch(0, train.tqdm(disable=True))
    generator = torch.Generator().manual_seed(0)
    margins = torch.rand(300, generator=generator) * 0.15 * (torch.arange(300) % 5 > 0)
    training.eps = pruning.adapt(margins, training.kept, training.settings.epsilon)
    ids = torch.arange(0, 300, 2)
    x, y = training.dataset.images[ids].float() / 255, training.dataset.labels[ids]
    moved = (training.adversarial(x, y, ids, 1) - x).abs().flatten(1).max(1).values
    eps = training.eps[ids]
    # N-FGSM leaves the ball by design: its noise has twice the budget, its step one more
    bound = 3 * eps if attack == "n-fgsm" else eps
    assert (moved <= bound + 1e-6).all() and not moved[eps == 0].any()
    assert (moved[eps > 0] > 0.5 * eps[eps > 0]).all() and 0.03 < eps.mean() < 0.07
    training.keep_all()  # as --until-epoch does
    assert training.budget(ids)[0] == training.settings.epsilon


@pytest.mark.parametrize("how", [dict(eps=8), dict(eps=-0.1), dict(eps=math.nan),
                                 dict(eps=0.1, floor=8), dict(eps=0.1, fraction=40)])
def test_budgets_to_adapt_are_in_0_1(how):
    with pytest.raises(ValueError, match="give eps=8/255"):
        pruning.adapt(torch.rand(9), torch.arange(9), **how)


def test_puma_drops_the_highest_margins_and_adapts_to_the_rest(trained, tmp_path):
    model = trained(*FEW, "--epochs", "10")  # a finished robust network
    puma = trained(*FEW, "--prune", "puma", "--p", "0.3", "--score-model", str(model),
                   "--epoch", "0")
    file = np.load(puma / "scores.npz")
    scores, kept = file["scores"], set(file["kept"])
    assert len(kept) == 140 and str(file["kind"]) == "margin"
    dropped = [i for i in range(200) if i not in kept]
    assert max(scores[list(kept)]) <= min(scores[dropped])
    dataset = data.load("synthetic", limit=200)
    found = attacks.deepfool(stored_weights.of_run(model), dataset.images, dataset.labels)
    np.testing.assert_allclose(scores, found.distance, atol=1e-5)
    used = run.read_config(puma)["settings"]
    assert used.adapt_eps and used.score == "margin" and used.eps_floor == 0

    # the same by way of prune.py's score file
    made = prune.main([str(model), "--prune", "puma", "--p", "0.3"])
    again = tmp_path / "again"
    train.main([*TRAINED, *FEW, "--prune", "puma", "--p", "0.3", "--scores", made["scores_file"],
                "--out", str(again)])
    assert same(again, puma)


def test_adapting_changes_what_is_trained_and_a_large_floor_changes_nothing(trained):
    def end(*flags):
        return weights(trained(*FEW, "--p", "0.3", "--epoch", "0", "--epsilon", "0.2",
                               "--score-model", str(trained()), *flags))

    plain, puma = end("--prune", "high", "--score", "margin"), end("--prune", "puma")
    floored = end("--prune", "puma", "--eps-floor", "0.2")
    for name, value in plain.items():
        torch.testing.assert_close(floored[name], value, rtol=0.01, atol=1e-4)
        assert not torch.allclose(puma[name], value, rtol=0.01, atol=1e-4)


def test_trades_against_its_equations(trained):
    """One SGD step on one batch, from equation 5 of Zhang et al. 2019, in float64."""
    training, network = training_of(
        "--loss", "trades", "--beta", "3", "--label-smoothing", "0.2", "--batch-size", "300",
        "--epochs", "2", "--pgd-steps", "3", "--epsilon", "0.4",
        optimizer="sgd", lr=0.1, peak=0.5, momentum=0.0, weight_decay=0.0)
    a, dataset = training.settings, training.dataset
    undefended = trained("--attack", "none", "--epochs", "8")  # whose divergence is no trifle
    stored_weights.load(training.model, undefended / "model.safetensors")
    model = models.build(**network).double()
    model.load_state_dict({k: v.double() for k, v in training.model.state_dict().items()})
    ids = data.shuffled(torch.arange(300), a.seed, 0)
    x, y = dataset.images[ids].float() / 255, dataset.labels[ids]
    adv = training.adversarial(x, y, ids, 0).double()

    def divergence(at):
        p, q = model(x.double()).softmax(1), model(at).softmax(1)
        return (p * (p / q).log()).sum(1)

    start = ops.rs_start(x, ids, a.epsilon, a.seed, 0, clip_start=True).double()
    assert ((adv - x).abs().max() <= a.epsilon + 1e-6 and adv.min() >= 0 and adv.max() <= 1)
    assert (divergence(adv) >= divergence(start) - 1e-9).double().mean() > 0.9  # it climbs
    assert divergence(adv).mean() > 0.01
    training.epoch(0, train.tqdm(disable=True))
    log_p = model(x.double()).log_softmax(1)
    smoothed = F.one_hot(y, 10) * 0.8 + 0.2 / 10
    loss = (-(smoothed * log_p).sum(1) + 3 * divergence(adv)).mean()
    loss.backward()
    assert training.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    for new, old in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new.double(), old - 0.1 * old.grad, rtol=1e-3, atol=1e-5)


def test_the_average_is_what_is_kept(monkeypatch):
    training, _ = training_of("--ema", "0.9", "--batch-size", "100")
    seen, step = [], training.opt.step

    def record():
        step()
        seen.append([v.detach().clone() for v in training.model.parameters()])

    monkeypatch.setattr(training.opt, "step", record)
    training.epoch(0, train.tqdm(disable=True))
    average = seen[0]
    for later in seen[1:]:
        average = [0.9 * old + 0.1 * new for old, new in zip(average, later, strict=True)]
    for ours, wanted in zip(training.result.parameters(), average, strict=True):
        torch.testing.assert_close(ours, wanted)
    assert training.result is not training.model


def test_cosine_schedule():
    at = [train.lr_at(t, 0.2, 0.025, "cosine") for t in (0, 0.0125, 0.025, 0.5125, 1)]
    assert at == pytest.approx([0, 0.1, 0.2, 0.1, 0], abs=1e-12)
    quarter = train.lr_at(0.025 + 0.975 / 3, 0.2, 0.025, "cosine")
    assert quarter == pytest.approx(0.2 * (1 + math.cos(math.pi / 3)) / 2)


def test_resuming_after_the_pruning_needs_no_score_file(trained, tmp_path, cut_off):
    scores = tmp_path / "scores.npz"
    scores.write_bytes((trained(*FEW, "--prune", "puma", "--epoch", "1", "--ema", "0.9")
                        / "scores.npz").read_bytes())
    with cut_off(1):
        train.main([*TRAINED, *FEW, "--prune", "high", "--scores", "scores.npz", "--out", "cut"])
    scores.unlink()
    record = train.main(["--resume", "cut"])
    assert record["n_kept"] == 120
    assert str(np.load("cut/scores.npz")["kind"]) == "margin"  # as the file said


@pytest.mark.slow
def test_two_processes_prune_by_margin_as_one(trained, forks, tmp_path):
    flags = [*FEW, "--prune", "puma", "--epoch", "0", "--score-model", str(trained()),
             "--loss", "trades", "--pgd-steps", "2", "--ema", "0.9"]
    two, alone = tmp_path / "two", trained(*flags)
    command = killing.Command(forks, "train", tmp_path / "output", 2)
    command.run(*TRAINED, *flags, "--out", str(two))
    one, other = (np.load(folder / "scores.npz") for folder in (alone, two))
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-3, atol=1e-5)
    kept = set(one["kept"]), set(other["kept"])
    assert len(kept[0]) == 120 and len(kept[0] & kept[1]) >= 119  # up to rounding
    for name, value in weights(two).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=0.2, atol=0.02, msg=name)


def test_unfit_margin_models_and_scores_are_refused_in_one_sentence(tmp_path, capsys):
    train.main([*SYNTHETIC, "--epochs", "1", "--out", "run"])
    path = tmp_path / "run/config.json"
    path.write_text(path.read_text().replace('"classes": 10', '"classes": 11'))
    labels = data.load("synthetic", limit=300).labels
    run.write_scores("loss.npz", torch.rand(300), labels, torch.arange(9), "loss")
    network = models.build("mnist-net", 1)
    network[0].weight.data[0] = torch.nan
    torch.save(network.state_dict(), "nan.pth")
    for flags, word in [("--score-model run", "other data"), ("--scores loss.npz", "kind"),
                        ("--score-model nan.pth", "not finite")]:
        argv = [*SYNTHETIC, "--out", "new", "--prune", "puma", *flags.split()]
        assert word in refused(train.main, argv, capsys)
        assert not (tmp_path / "new").exists()
