"""The training loop: the equations, the schedule, that it learns, and the contracts of a run."""
import csv
import json
import os
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, weights
from torch._dynamo.testing import CompileCounter

import evaluate
import train
from advprune import attacks, data, inputs, models, ops, recipes, settings

KEYS = ["run", "dataset", "prune", "p", "epoch", "epochs", "seed", "n_train", "n_kept",
        "clean_accuracy", "train_seconds", "prune_seconds", "images_per_second"]


def log(run):
    with open(run / "log.csv") as file:
        return list(csv.DictReader(file))


def test_schedule_is_the_references():
    rate = [train.lr_at(t / 10, 5e-3, 0.4) for t in range(11)]
    np.testing.assert_allclose(rate, np.interp(range(11), [0, 4, 10], [0, 5e-3, 0]))
    assert train.lr_at(1.0, 0.2, 0.5) == 0
    assert train.lr_at(0.5, 0.2, 0.5) == 0.2


def test_one_step_of_training_against_a_plain_loop(tmp_path):
    """One SGD epoch of one batch on the RS+FGSM example, recomputed from the equations."""
    args = settings.parse(["--dataset", "synthetic", "--limit", "32", "--epochs", "2",
                        "--batch-size", "32", "--out", "unused"])
    args.optimizer, args.peak, args.lr = "sgd", 0.5, 0.1  # the first epoch ends at the peak
    dataset = inputs.dataset(args, torch.device("cpu"))
    training = train.Training(args, dataset, torch.device("cpu"))
    model = models.build(**args.network).double()
    model.load_state_dict({k: v.double() for k, v in training.model.state_dict().items()})

    training.epoch(0, train.tqdm(disable=True))

    ids = data.shuffled(torch.arange(32), args.seed, 0)
    x, y = dataset.images[ids].double() / 255, dataset.labels[ids]
    start = ops.rs_start(x.float(), ids, args.epsilon, args.seed, 0).double()
    start.requires_grad_()
    torch.nn.functional.cross_entropy(model(start), y).backward()
    delta = start.detach() - x + args.alpha * start.grad.sign()
    adv = (x + delta.clamp(-args.epsilon, args.epsilon)).clamp(0, 1)
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(adv), y)
    loss.backward()
    assert training.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    named = training.model.named_parameters()
    for (name, new), old in zip(named, model.parameters(), strict=True):
        wanted = old - 0.1 * (old.grad + 5e-4 * old)
        torch.testing.assert_close(new.double(), wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_learning_happens_and_defends(trained, tmp_path):
    robust = {}
    for attack in ("none", "rs-fgsm"):
        run = trained("--attack", attack, "--epochs", "20", "--epsilon", "0.2")
        rows = log(run)
        assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
        record = evaluate.main([str(run), "--attack", "pgd", "--n", "200"])
        robust[attack] = record["robust_accuracy"]
    assert robust["rs-fgsm"] > robust["none"] + 0.2


def test_a_run_describes_itself(trained, capsys):
    run = trained("--prune", "high", "--p", "0.4", "--epoch", "1")
    record = json.loads((run / "train.json").read_text())
    assert list(record)[:len(KEYS)] == KEYS
    assert (record["n_train"], record["n_kept"]) == (600, 360)
    config = json.loads((run / "config.json").read_text())
    assert config["args"]["epsilon"] == recipes.RECIPES["synthetic"]["epsilon"]
    assert config["versions"]["torch"] == torch.__version__
    assert "--prune high" in config["command"]
    rows = log(run)
    assert [int(row["examples"]) for row in rows] == [600, 360, 360]
    assert float(rows[-1]["lr"]) == pytest.approx(0, abs=1e-9)  # the schedule was completed
    scores = np.load(run / "scores.npz")
    assert scores["scores"].shape == scores["labels"].shape == (600,)
    assert scores["scores"][scores["kept"]].max() <= np.sort(scores["scores"])[359]
    assert (run / "pruned.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_weights_and_another_seed_others(trained, tmp_path):
    again = tmp_path / "again"
    train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--out", str(again)])
    same, other = weights(trained()), weights(trained("--seed", "1"))
    for name, value in weights(again).items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])


@pytest.mark.parametrize("stop", [1, 2])
def test_resumed_run_ends_with_the_same_weights(trained, tmp_path, cut_off, stop):
    flags = ["--prune", "low+high", "--p", "0.5", "--epoch", "1", "--score", "running-loss"]
    whole, run = trained(*flags), tmp_path / "cut"
    with cut_off(stop):
        train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--out",
                    str(run), *flags])
    assert not (run / "train.json").exists()
    train.main(["--resume", str(run)])
    assert all(torch.equal(v, weights(whole)[name]) for name, v in weights(run).items())
    with pytest.raises(SystemExit) as finished:
        train.main(["--resume", str(run)])
    assert finished.value.code == 2


@pytest.mark.parametrize("flags", [
    ["--attack", "n-fgsm"], ["--attack", "pgd", "--pgd-steps", "2"], ["--precision", "bf16"],
    ["--tensorboard"], ["--prune", "random", "--epoch", "1", "--class-balanced"],
    ["--prune", "middle", "--epoch", "2", "--score", "clean-loss"], ["--model", "preactresnet18",
     "--width", "2"], ["--model", "wideresnet28-10-silu", "--width", "1", "--limit", "64"],
])
def test_flags_train(trained, flags):
    run = trained(*flags)
    record = json.loads((run / "train.json").read_text())
    assert 0 <= record["clean_accuracy"] <= 1
    assert record["n_kept"] == record["n_train"] - round(record["p"] * record["n_train"])
    assert bool(list(run.glob("events.out.tfevents.*"))) == ("--tensorboard" in flags)


def test_the_record_has_classes_and_times_and_tensorboard_the_picture(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = trained("--prune", "high", "--epoch", "1", "--tensorboard")
    record = json.loads((run / "train.json").read_text())
    assert record["classes"] == [str(c) for c in range(10)]
    assert 0 < record["draw_seconds"] < 60
    events = EventAccumulator(str(run)).Reload()
    accuracies = events.Scalars("clean_test_accuracy")
    assert [event.step for event in accuracies] == [1, 2, 3]
    assert accuracies[-1].value == pytest.approx(record["clean_accuracy"])
    assert [event.value for event in events.Scalars("examples")] == [600, 360, 360]
    assert events.Images("pruned")[0].encoded_image_string.startswith(b"\x89PNG")


def test_the_time_to_draw_survives_an_interruption(tmp_path, cut_off):
    flags = ["--dataset", "synthetic", "--limit", "200", "--epochs", "3", "--prune", "high"]
    with cut_off(2):
        train.main([*flags, "--epoch", "1", "--out", "cut"])
    assert train.main(["--resume", "cut"])["draw_seconds"] > 0


def test_two_graphs_are_compiled_and_no_third(monkeypatch):
    """One of the attack and one of the update; not for the last batch, scoring or the guard."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    train.main(["--dataset", "synthetic", "--limit", "70", "--epochs", "3", "--prune", "high",
                "--epoch", "1", "--compile"])
    assert counter.frame_count == 2


def test_compiled_training_gives_the_same_losses(trained):
    for one, other in zip(log(trained()), log(trained("--compile")), strict=True):
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), rel=0.05)


def test_processes_share_the_work(trained, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--prune", "high",
             "--p", "0.4", "--epoch", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
         str(port), "--", str(ROOT / "train.py"), *flags, "--out", str(tmp_path / "two")],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["n_kept"] == 360
    alone = trained("--prune", "high", "--p", "0.4", "--epoch", "1")
    one, two = weights(alone), weights(tmp_path / "two")
    for name, value in two.items():  # the same up to the order of sums
        torch.testing.assert_close(value, one[name], rtol=0.2, atol=0.02, msg=name)
    kept = [set(np.load(run / "scores.npz")["kept"]) for run in (alone, tmp_path / "two")]
    assert len(kept[0] & kept[1]) >= 355


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


@pytest.mark.parametrize(("flags", "word"), [
    (["--dataset", "nosuch"], "nosuch"),
    *[(["--prune", "high", "--p", p], "--p") for p in ("-0.1", "1", "1.5", "nan", "lots")],
    (["--prune", "high", "--epoch", "6", "--epochs", "5"], "--epoch"),
    (["--epsilon", "-0.1"], "--epsilon"), (["--epsilon", "8"], "--epsilon"),
    (["--batch-size", "0"], "--batch-size"), (["--epochs", "0"], "--epochs"),
    (["--lr", "0"], "--lr"), (["--limit", "0"], "--limit"), (["--seed", "-1"], "--seed"),
    (["--p", "0.4"], "--prune"), (["--epo", "3"], "--epo"), (["--device", "warp"], "warp"),
    (["--prune", "high", "--epoch", "0", "--score", "running-loss"], "running-loss"),
    (["--scores", "missing.npz", "--prune", "high"], "missing.npz"),
    (["--limit", "1", "--prune", "high", "--p", "0.9"], "--p"),
    (["--data-dir", "afile", "--dataset", "mnist"], "afile"), (["--resume", "x"], "--dataset"),
    (["--data-dir", "empty", "--dataset", "cifar10"], "cifar10"), (["--out", "there"], "there"),
])
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, capsys, flags, word):
    (tmp_path / "afile").touch()
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dataset", "synthetic", *flags])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert word in err
    assert sorted(tmp_path.rglob("*")) == before


def test_scores_of_another_set_are_refused(trained, tmp_path, capsys):
    scores = trained("--prune", "high", "--p", "0.4", "--epoch", "1") / "scores.npz"
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dataset", "synthetic", "--limit", "500", "--prune", "high", "--scores",
                    str(scores), "--out", "new"])
    assert stopped.value.code == 2
    assert "600 examples, but the training set has 500" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_that_learnt_nothing_says_so(capsys):
    train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "1", "--lr", "1e-9"])
    assert "is about that of guessing" in capsys.readouterr().err
    train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3"])
    assert "guessing" not in capsys.readouterr().err


def test_default_names_never_collide():
    flags = ["--dataset", "synthetic", "--limit", "100", "--epochs", "1"]
    names = [train.main(flags)["run"] for _ in range(2)]
    assert names == ["runs/synthetic-rs-fgsm-s0", "runs/synthetic-rs-fgsm-s0-2"]


def test_help_is_the_files_docstring(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(["--help"])
    assert stopped.value.code == 0
    assert train.__doc__.splitlines()[0] in capsys.readouterr().out


def test_training_in_bfloat16_resumes_to_the_same_weights(trained, tmp_path, cut_off):
    flags = ["--precision", "bf16", "--prune", "high", "--epoch", "1"]
    with cut_off(2):
        train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", *flags, "--out",
                    str(tmp_path / "run")])
    train.main(["--resume", str(tmp_path / "run")])
    mine, theirs = weights(tmp_path / "run"), weights(trained(*flags))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
