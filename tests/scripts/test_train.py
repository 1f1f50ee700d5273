"""The training loop: the equations, the schedule, that it learns, and the contracts of a run."""
import csv
import dataclasses
import json

import killing
import numpy as np
import pytest
import torch
from conftest import TRAINED, refused, same, weights

import evaluate
import train
from advprune import config, data, models, ops

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


def test_one_step_of_training_against_a_plain_loop():
    """One SGD epoch of one batch on the RS+FGSM example, recomputed from the equations."""
    _, a = config.parse(["--dataset", "synthetic", "--limit", "32", "--epochs", "2",
                         "--batch-size", "32"])
    a = dataclasses.replace(a, optimizer="sgd", peak=0.5, lr=0.1,  # it ends at the peak
                            weight_decay=5e-4)
    training, network, _ = train.prepared(a, torch.device("cpu"))
    dataset, model = training.dataset, models.build(**network).double()
    model.load_state_dict({k: v.double() for k, v in training.model.state_dict().items()})

    training.epoch(0, train.tqdm(disable=True))

    ids = data.shuffled(torch.arange(32), a.seed, 0)
    x, y = dataset.images[ids].double() / 255, dataset.labels[ids]
    start = ops.rs_start(x.float(), ids, a.epsilon, a.seed, 0).double()
    start.requires_grad_()
    torch.nn.functional.cross_entropy(model(start), y).backward()
    delta = start.detach() - x + a.alpha * start.grad.sign()
    adv = (x + delta.clamp(-a.epsilon, a.epsilon)).clamp(0, 1)
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(adv), y)
    loss.backward()
    assert training.rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    named = training.model.named_parameters()
    for (name, new), old in zip(named, model.parameters(), strict=True):
        wanted = old - 0.1 * (old.grad + 5e-4 * old)
        torch.testing.assert_close(new.double(), wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_learning_happens_and_defends(trained):
    robust = {}
    for attack in ("none", "rs-fgsm"):
        run = trained("--attack", attack, "--epochs", "20", "--epsilon", "0.2")
        rows = log(run)
        assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
        record = evaluate.main([str(run), "--attack", "pgd", "--n", "60"])
        robust[attack] = record["robust_accuracy"]
    assert robust["rs-fgsm"] > robust["none"] + 0.2


def test_a_run_describes_itself(trained, capsys):
    run = trained("--prune", "high", "--p", "0.4", "--epoch", "1")
    record = json.loads((run / "train.json").read_text())
    assert list(record)[:len(KEYS)] == KEYS
    assert (record["n_train"], record["n_kept"]) == (600, 360)
    assert record["classes"] == [str(c) for c in range(10)]
    described = json.loads((run / "config.json").read_text())
    assert described["settings"]["epsilon"] == config.RECIPES["synthetic"]["epsilon"]
    assert described["versions"]["torch"] == torch.__version__
    assert "--prune high" in described["command"]
    rows = log(run)
    assert [int(row["examples"]) for row in rows] == [600, 360, 360]
    assert float(rows[-1]["lr"]) == pytest.approx(0, abs=1e-9)  # the schedule was completed
    scores = np.load(run / "scores.npz")
    assert scores["scores"].shape == scores["labels"].shape == (600,)
    assert scores["scores"][scores["kept"]].max() <= np.sort(scores["scores"])[359]
    assert (run / "pruned.png").read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_weights_and_another_seed_others(trained, tmp_path):
    again = tmp_path / "again"
    train.main([*TRAINED, "--out", str(again)])
    same, other = weights(trained()), weights(trained("--seed", "1"))
    for name, value in weights(again).items():
        assert torch.equal(value, same[name])
        assert not torch.equal(value, other[name])


TAILS = ["--prune", "low+high", "--p", "0.5", "--epoch", "1", "--score", "running-loss"]
PUMA = ["--limit", "200", "--prune", "puma", "--epoch", "1", "--ema", "0.9"]
BF16 = ["--limit", "60", "--precision", "bf16", "--prune", "high", "--epoch", "1"]


@pytest.mark.parametrize(("stop", "how", "flags"), [
    *((stop, how, TAILS) for stop in (0, 1, 2) for how in ("same", "resume")),
    (2, "same", BF16), (2, "resume", PUMA)])
def test_the_same_command_continues_to_the_same_weights(trained, cut_off, capsys, stop, how,
                                                        flags):
    """And so does --resume. Then the run is finished, and says so. 0: it begins again."""
    command = [*TRAINED, *flags, "--out", "cut"]
    with cut_off(stop):
        train.main(command)
    record = train.main(command if how == "same" else ["--resume", "cut"])
    assert same("cut", trained(*flags))
    assert len(record["segment_seconds"]) == (1 if stop == 0 else 2)
    for again in (command, ["--resume", "cut"]):
        capsys.readouterr()
        assert train.main(again) == record
        said, err = capsys.readouterr()
        assert "cut is finished" in err and "clean accuracy" in said


@pytest.mark.parametrize(("flags", "name"), [
    (["--seed", "1"], "seed"), (["--prune", "low", "--epoch", "1"], "prune"),
    (["--epsilon", "0.2"], "epsilon"), (["--epochs", "9"], "epochs"),
    (["--dataset", "digits"], "dataset"), (["--recipe", "robust"], "recipe")])
def test_another_command_is_refused_and_names_what_differs(trained, capsys, flags, name):
    run = trained()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = refused(train.main, [*TRAINED, "--out", str(run), *flags], capsys)
    assert "other settings" in said and name in said.partition("(")[2].partition(")")[0]
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("flags", [
    ["--attack", "n-fgsm"], ["--attack", "pgd", "--pgd-steps", "2"],
    ["--precision", "bf16", "--limit", "60"],
    ["--prune", "random", "--epoch", "1", "--class-balanced"],
    ["--prune", "middle", "--epoch", "2", "--score", "clean-loss"], ["--model", "preactresnet18",
     "--width", "2", "--limit", "60"],
    ["--recipe", "wang2023", "--width", "1", "--limit", "20", "--epochs", "2", "--pgd-steps", "2"],
])
def test_flags_train(trained, flags):
    run = trained(*flags)
    record = json.loads((run / "train.json").read_text())
    assert 0 <= record["clean_accuracy"] <= 1
    assert record["n_kept"] == record["n_train"] - round(record["p"] * record["n_train"])


def test_processes_share_the_work(trained, forks, tmp_path):
    flags = ["--prune", "high", "--p", "0.4", "--epoch", "1"]
    command, runs = killing.Command(forks, "train", tmp_path / "output", 2), []
    for name in ("two", "again"):
        runs.append(tmp_path / name)
        command.run(*TRAINED, *flags, "--out", str(runs[-1]))
    assert killing.results(runs[0]) == killing.results(runs[1])
    assert json.loads((tmp_path / "two/train.json").read_text())["n_kept"] == 360
    alone = trained(*flags)
    one, two = weights(alone), weights(tmp_path / "two")
    for name, value in two.items():  # the same up to the order of sums
        torch.testing.assert_close(value, one[name], rtol=0.2, atol=0.02, msg=name)
    kept = [set(np.load(run / "scores.npz")["kept"]) for run in (alone, tmp_path / "two")]
    assert len(kept[0] & kept[1]) >= 355


def test_scores_of_another_set_are_refused(trained, tmp_path, capsys):
    scores = trained("--prune", "high", "--p", "0.4", "--epoch", "1") / "scores.npz"
    said = refused(train.main, ["--dataset", "synthetic", "--limit", "500", "--prune", "high",
                                "--scores", str(scores), "--out", "new"], capsys)
    assert "600 examples, but the training set has 500" in said
    assert not (tmp_path / "new").exists()
    said = refused(train.main, ["--dataset", "digits", "--limit", "600", "--prune", "high",
                                "--scores", str(scores), "--out", "new"], capsys)
    assert "its labels differ" in said


def test_a_run_that_learnt_nothing_says_so(capsys):
    train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "1", "--lr", "1e-9"])
    assert "is about that of guessing" in capsys.readouterr().err
    train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "12"])
    assert "guessing" not in capsys.readouterr().err


def test_pruning_by_a_network_near_chance_says_so(capsys):
    """Ten classes: one that guesses is right on 6 of 32 at most, in 19 of 20 cases."""
    flags = ["--dataset", "synthetic", "--limit", "600", "--prune"]
    for more, said in ((["high", "--epochs", "1", "--epoch", "0"], 1),
                       (["random", "--epochs", "1", "--epoch", "0"], 0),
                       (["high", "--epochs", "6", "--epoch", "5", "--attack", "none"], 0)):
        train.main([*flags, *more])
        err = capsys.readouterr().err
        assert err.count("the network that gives the scores is near chance") == said
        assert ("on 32 training examples; give a later --epoch" in err) == said


def test_pruning_that_starves_a_class_names_it(capsys, tmp_path):
    """By scores that rise with the class: high drops the last two, a rule of one's own one."""
    labels = data.load("synthetic", limit=200).labels.numpy()
    np.savez("scores.npz", scores=labels.astype(np.float32), labels=labels)
    command = ["--dataset", "synthetic", "--limit", "200", "--epochs", "1", "--epoch", "0"]
    (tmp_path / "own.py").write_text("def rule(scores, labels, p, seed, epoch):\n"
                                     "    return (labels != 3).nonzero().flatten()\n")
    counts = np.bincount(labels)
    for flags, words in (
            (["--prune", "high", "--p", "0.22", "--scores", "scores.npz"],
             f"high pruning keeps only 0 of {counts[8]} (8), 0 of {counts[9]} (9), less than a "
             "quarter of their share; give --class-balanced or a later --epoch"),
            (["--prune", "own.py:rule"],
             f"own.py:rule pruning keeps only 0 of {counts[3]} (3), less than a quarter of their "
             "share; give a later --epoch")):
        train.main([*command, *flags])
        assert f"train.py: {words}" in capsys.readouterr().err.splitlines()
    train.main([*command, "--prune", "high", "--scores", "scores.npz", "--class-balanced"])
    assert "keeps only" not in capsys.readouterr().err


def test_default_names_never_collide():
    flags = ["--dataset", "synthetic", "--limit", "100", "--epochs", "1"]
    names = [train.main(flags)["run"] for _ in range(2)]
    assert names == ["runs/synthetic-rs-fgsm-s0", "runs/synthetic-rs-fgsm-s0-2"]
