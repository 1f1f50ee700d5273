"""PUMA and the recipe it stands on: adapted budgets, margin models, TRADES, averaged weights."""
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import load_file

import prune
import train
from advprune import attacks, data, inputs, models, ops, pruning, saved, settings

SYNTHETIC = ["--dataset", "synthetic", "--limit", "300"]


def weights(run):
    return load_file(run / "model.safetensors")


def training_of(*flags):
    args = settings.parse([*SYNTHETIC, *flags])
    return train.Training(args, inputs.dataset(args, torch.device("cpu")), torch.device("cpu"))


def test_adapted_budgets_by_hand():
    margins = torch.tensor([0.0, 0.02, 0.5, 0.07, 0.04, 0.01])
    kept = torch.tensor([0, 1, 3, 4])

    def adapt(**how):
        return pruning.adapt(margins, kept, 0.05, **how)[kept].tolist()

    assert adapt() == pytest.approx([0, 0.02, 0.05, 0.04])
    assert adapt(floor=0.03) == pytest.approx([0.03, 0.03, 0.05, 0.04])
    assert adapt(fraction=0.5) == pytest.approx([0, 0.02, 0.05, 0.05])
    assert adapt(floor=0.9) == pytest.approx([0.05] * 4)  # a floor above eps is eps


ATTACKS = {"rs-fgsm": ["--attack", "rs-fgsm"], "pgd": ["--attack", "pgd", "--pgd-steps", "4"],
           "trades": ["--loss", "trades", "--pgd-steps", "4"], "n-fgsm": ["--attack", "n-fgsm"]}


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_example_stays_within_its_own_budget(attack):
    training = training_of(*ATTACKS[attack], "--adapt-eps", "--epoch", "1")
    training.epoch(0, train.tqdm(disable=True))
    generator = torch.Generator().manual_seed(0)
    margins = torch.rand(300, generator=generator) * 0.15 * (torch.arange(300) % 5 > 0)
    training.eps = pruning.adapt(margins, training.kept, training.args.epsilon)
    ids = torch.arange(0, 300, 2)
    x, y = training.dataset.images[ids].float() / 255, training.dataset.labels[ids]
    moved = (training.adversarial(x, y, ids, 1) - x).abs().flatten(1).max(1).values
    eps = training.eps[ids]
    # N-FGSM leaves the ball by design: its noise has twice the budget, its step one more
    bound = 3 * eps if attack == "n-fgsm" else eps
    assert (moved <= bound + 1e-6).all() and not moved[eps == 0].any()
    assert (moved[eps > 0] > 0.5 * eps[eps > 0]).all() and 0.03 < eps.mean() < 0.07


def test_the_reference_keeps_the_budgets_too():
    """The same test, all of them, in plain torch."""
    this = "tests/test_puma.py::test_every_example_stays_within_its_own_budget"
    done = subprocess.run([sys.executable, "-m", "pytest", this], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, "ADVPRUNE_KERNELS": "0"})
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout


def test_puma_drops_the_highest_margins_and_adapts_to_the_rest(trained, tmp_path):
    model = trained()  # a finished robust network
    run = trained("--prune", "puma", "--p", "0.3", "--margin-model", str(model), "--epoch", "0")
    file = np.load(run / "scores.npz")
    scores, kept = file["scores"], set(file["kept"])
    assert len(kept) == 420 and str(file["kind"]) == "margin"
    dropped = [i for i in range(600) if i not in kept]
    assert max(scores[list(kept)]) <= min(scores[dropped])
    dataset = data.load("synthetic", limit=600)
    config = json.loads((model / "config.json").read_text())
    found = attacks.deepfool(saved.from_run(model, config),
                             dataset.images, dataset.labels)
    np.testing.assert_allclose(scores, found.distance, atol=1e-5)
    used = json.loads((run / "config.json").read_text())["args"]
    assert used["adapt_eps"] and used["score"] == "margin" and used["eps_floor"] == 0

    # the same by way of prune.py's score file
    made = prune.main([str(model), "--prune", "puma", "--p", "0.3"])
    again = tmp_path / "again"
    train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--prune", "puma",
                "--p", "0.3", "--scores", made["scores_file"], "--out", str(again)])
    assert all(torch.equal(v, weights(run)[name]) for name, v in weights(again).items())


def test_adapting_changes_what_is_trained_and_a_large_floor_changes_nothing(trained):
    def end(*flags):
        return weights(trained("--score", "margin", "--p", "0.3", "--epoch", "0", "--epsilon",
                               "0.2", "--margin-model", str(trained()), *flags))

    plain, puma = end("--prune", "high"), end("--prune", "puma")
    floored = end("--prune", "puma", "--eps-floor", "0.2")
    for name, value in plain.items():
        torch.testing.assert_close(floored[name], value, rtol=0.01, atol=1e-4)
        assert not torch.allclose(puma[name], value, rtol=0.01, atol=1e-4)


def test_trades_against_its_equations(trained):
    """One SGD step on one batch, from equation 5 of Zhang et al. 2019, in float64."""
    training = training_of("--loss", "trades", "--beta", "3", "--label-smoothing", "0.2",
                           "--batch-size", "300", "--epochs", "2", "--pgd-steps", "3",
                           "--epsilon", "0.4")
    args, dataset = training.args, training.dataset
    undefended = trained("--attack", "none", "--epochs", "8")  # whose divergence is no trifle
    models.load_weights(training.model, undefended / "model.safetensors")
    training.opt, args.peak, args.lr = torch.optim.SGD(training.model.parameters(), 1), 0.5, 0.1
    model = models.build(**args.network).double()
    model.load_state_dict({k: v.double() for k, v in training.model.state_dict().items()})
    ids = data.shuffled(torch.arange(300), args.seed, 0)
    x, y = dataset.images[ids].float() / 255, dataset.labels[ids]
    adv = training.adversarial(x, y, ids, 0).double()

    def divergence(at):
        p, q = model(x.double()).softmax(1), model(at).softmax(1)
        return (p * (p / q).log()).sum(1)

    start = ops.rs_start(x, ids, args.epsilon, args.seed, 0, clip_start=True).double()
    assert ((adv - x).abs().max() <= args.epsilon + 1e-6 and adv.min() >= 0 and adv.max() <= 1)
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
    training = training_of("--ema", "0.9", "--batch-size", "100")
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


def test_a_resumed_puma_run_ends_with_the_same_weights(trained, tmp_path, cut_off):
    flags = ["--prune", "puma", "--epoch", "1", "--ema", "0.9", "--schedule", "cosine"]
    whole, run = trained(*flags), tmp_path / "cut"
    with cut_off(2):
        train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--out",
                    str(run), *flags])
    train.main(["--resume", str(run)])
    assert all(torch.equal(v, weights(whole)[name]) for name, v in weights(run).items())


def test_resuming_after_the_pruning_needs_no_score_file(trained, tmp_path, cut_off):
    scores = tmp_path / "scores.npz"
    scores.write_bytes((trained("--prune", "puma", "--epoch", "1") / "scores.npz").read_bytes())
    with cut_off(1):
        train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "2", "--prune", "high",
                    "--scores", "scores.npz", "--out", "cut"])
    scores.unlink()
    record = train.main(["--resume", "cut"])
    assert record["n_kept"] == 360
    assert str(np.load("cut/scores.npz")["kind"]) == "margin"  # as the file said


def test_two_processes_prune_by_margin_as_one(trained, tmp_path):
    flags = ["--prune", "puma", "--p", "0.4", "--epoch", "0", "--margin-model", str(trained()),
             "--loss", "trades", "--pgd-steps", "2", "--ema", "0.9"]
    two, alone = tmp_path / "two", trained(*flags)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         str(20000 + os.getpid() % 10000), "--", str(ROOT / "train.py"), "--dataset", "synthetic",
         "--limit", "600", "--epochs", "3", "--out", str(two), *flags],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    kept = [set(np.load(run / "scores.npz")["kept"]) for run in (alone, two)]
    assert len(kept[0]) == 360 and len(kept[0] & kept[1]) >= 358  # up to rounding
    for name, value in weights(two).items():
        torch.testing.assert_close(value, weights(alone)[name], rtol=0.2, atol=0.02, msg=name)


@pytest.mark.parametrize(("flags", "word"), [
    ("--prune puma --score loss", "margin"), ("--adapt-eps --score clean-loss", "margin"),
    ("--eps-floor 0.1", "--adapt-eps"), ("--adapt-fraction 0.5 --prune high", "--adapt-eps"),
    ("--margin-model x --prune high", "--score margin"), ("--beta 3", "trades"),
    ("--prune puma --margin-norm l2", "l-inf"), ("--prune puma --attack none", "budget"),
    ("--loss trades --attack rs-fgsm", "--attack"), ("--adapt-eps --p 0.3", "--prune"),
    ("--prune puma --epsilon 0", "budget"), ("--nesterov", "adam"), ("--ema 1", "below 1"),
    ("--adapt-fraction 0", "above 0"),
    ("--score margin", "--prune"), ("--prune puma --margin-model nowhere.pth", "nowhere.pth"),
    ("--prune puma --margin-model {run}", "other data"), ("--prune puma --scores {loss}", "kind"),
    ("--prune none --p 0.3", "--prune"), ("--prune random --score margin", "random"),
    ("--prune random --margin-model {run}", "random"),
    ("--prune puma --margin-model {nan}", "not finite"),
])
def test_settings_that_contradict_are_refused_in_one_sentence(trained, tmp_path, capsys, flags,
                                                              word):
    run = tmp_path / "other"
    if "{run}" in flags:
        train.main([*SYNTHETIC, "--epochs", "1", "--out", str(run)])
        config = json.loads((run / "config.json").read_text())
        config["args"]["network"]["classes"] = 11
        (run / "config.json").write_text(json.dumps(config))
    labels = data.load("synthetic", limit=300).labels
    pruning.save("loss.npz", torch.rand(300), labels, torch.arange(9), "loss")
    network = models.build("mnist-net", 1)
    network[0].weight.data[0] = torch.nan
    torch.save(network.state_dict(), "nan.pth")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([*SYNTHETIC, "--out", "new",
                    *flags.format(run=run, loss="loss.npz", nan="nan.pth").split()])
    said = capsys.readouterr()
    assert stop.value.code == 2 and not said.out and not (tmp_path / "new").exists()
    assert len(said.err.strip().splitlines()) == 1 and word in said.err, said.err
