"""The guard against collapse: it sees one, changes nothing else, and a rollback repairs it."""
import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import TRAINED, same, weights

import prune
import train
from advprune import config, data, guard
from advprune.errors import Stopped

CPU = torch.device("cpu")
FLAGS = ["--dataset", "synthetic", "--limit", "200", "--epochs", "4"]


def rows_of(text):
    """Log rows from 'training accuracy/robust accuracy' pairs, as measured on MNIST."""
    pairs = [pair.split("/") for pair in text.split()]
    return [{"accuracy": float(a), "robust": float(r) if r else None} for a, r in pairs]


@pytest.mark.parametrize(("log", "epoch"), [
    # MNIST under the paper's recipe, seeds 0, 2 and 8: the epoch that collapsed
    (".31/.02 .73/.19 .82/.22 .87/.73 .91/.73 .94/.05 .97/.00", 6),
    (".24/.07 .63/.06 .72/.19 .78/.06 .88/.00", 4),
    (".33/.19 .71/.44 .82/.46 .87/.49 .89/.62 .91/.78 .93/.81 .94/.50", 8),
    (".30/.01 .80/.00 .85/.00", 2),
    # seeds 1 and 3, and a small step, which is slow to become robust: none
    (".19/.19 .70/.46 .82/.69 .88/.79 .92/.88 .93/.87 .95/.90", None),
    (".36/.12 .72/.33 .84/.74 .89/.79 .92/.82", None),
    (".36/.06 .80/.11 .85/.27 .88/.40 .90/.47 .91/.59 .92/.47 .92/.61", None),
    # pruning keeps the hard examples: both accuracies fall
    (".80/.70 .50/.40", None), ("nan/nan .9/.8", None),
    (".87/.73 .91/ .94/.05", 3), (".80/ .85/.60 .88/ .90/.55", None),  # not every epoch is checked
])
def test_collapse_is_seen_by_its_check(log, epoch):
    rows = rows_of(log)
    seen = [i for i in range(1, len(rows) + 1)
            if rows[i - 1]["robust"] is not None and guard.collapse(rows[:i])]
    assert (seen or [None])[0] == epoch


@pytest.mark.parametrize(("robust", "clean", "fragile"), [
    (0.0, 0.8, True), (0.01, 0.25, True), (0.05, 0.99, True),
    (0.72, 0.98, False), (0.2, 0.35, False), (0.15, 0.99, False),
    (0.0, 0.1, False), (0.016, 0.156, False),  # it has not learnt anything yet
    (float("nan"), 0.9, False), (None, None, False)])
def test_what_is_no_defence_at_the_end(robust, clean, fragile):
    assert guard.fragile({"robust": robust, "clean": clean}) is fragile


@pytest.mark.parametrize(("flags", "values", "said"), [
    ([], [0.0, 0.0, 0.0, 0.05], True),  # it was never robust, so nothing collapsed
    ([], [0.0, 0.0, 0.0, 0.5], False), (["--attack", "none"], [0.0] * 4, False),
    (["--epsilon", "0"], [0.0] * 4, False)])
def test_a_run_that_ends_without_a_defence_says_so(monkeypatch, capsys, flags, values, said):
    monkeypatch.setattr(guard, "due", lambda *_: {1, 2, 3, 4})
    monkeypatch.setattr(guard.Guard, "measure", lambda self, model: (values.pop(0), 0.9))
    record = train.main([*FLAGS, *flags, "--out", "r"])
    found = [line for line in capsys.readouterr().err.splitlines() if "no defence" in line]
    assert len(found) == said and record["collapsed"] == said and not record["collapses"]


@pytest.fixture
def measured(monkeypatch):
    """measured(values): the guard finds these robust accuracies after these epochs, or all."""

    collapse = guard.collapse

    def fake(values, epochs=range(1, 5)):
        left = list(values)
        monkeypatch.setattr(guard, "due", lambda *_: set(epochs))
        monkeypatch.setattr(guard.Guard, "measure", lambda self, model: (left.pop(0), 0.9))
        # These short runs do not reach the training accuracy of a collapse.
        monkeypatch.setattr(guard, "collapse", lambda rows: collapse(
            [{**row, "accuracy": 0.99} for row in rows]))

    return fake


def test_the_guard_changes_no_weight(trained, measured):
    run = trained()
    measured([0.5] * 3)
    train.main([*TRAINED, "--out", "r"])
    assert same("r", run)


def test_warning_names_epoch_and_remedy_once(measured, capsys):
    measured([0.8, 0.1, 0.0, 0.0])
    record = train.main([*FLAGS, "--out", "r"])
    err = capsys.readouterr().err
    assert err.count("collapsed") == 1 and "epoch 2" in err and "--recipe robust" in err
    assert [event["epoch"] for event in record["collapses"]] == [2] and record["collapsed"]


@pytest.mark.parametrize("robust", [[0.8, 0.1], [0.8, 0.8, 0.8, 0.1]])
def test_stop_ends_with_3_as_often_as_the_command_is_given(measured, monkeypatch, robust):
    """The last value: the collapse is in the last epoch."""
    measured(robust)
    for command in ([*FLAGS, "--on-collapse", "stop", "--out", "r"], ["--resume", "r"]):
        with pytest.raises(Stopped, match=f"by epoch {len(robust)}: .* --recipe") as stopped:
            train.main(command)
        assert stopped.value.code == 3
        assert len(Path("r/log.csv").read_text().splitlines()) - 1 == len(robust)
        monkeypatch.setattr(train.Training, "epoch", None)  # it trains no further


def by_hand(epochs, before):
    """The weights after so many epochs, with the remedy's attack after the first `before`."""
    _, settings = config.parse(FLAGS)
    training = train.prepared(settings, CPU)[0]
    for epoch in range(epochs):
        if epoch == before:
            training.attack = config.remedy(settings.dataset, settings.epsilon)
        training.epoch(epoch, train.tqdm(disable=True))
    return training.model.state_dict()


def test_rollback_trains_as_if_it_had_changed_the_attack_in_time(measured, capsys):
    measured([0.5, 0.8, 0.1, 0.8, 0.8] + [0.8] * 4)
    record = train.main([*FLAGS, "--on-collapse", "rollback", "--out", "r"])
    (event,) = record["collapses"]
    assert (event["epoch"], event["action"], event["lost"]) == (3, "rollback", 200)
    assert record["examples"] == 5 * 200 and not record["collapsed"]
    assert len(Path("r/log.csv").read_text().splitlines()) - 1 == 4
    assert "back to the end of epoch 2" in capsys.readouterr().err
    for name, value in by_hand(4, before=2).items():
        assert torch.equal(value, weights("r")[name])


def test_rollback_past_the_pruning_prunes_again(measured):
    measured([0.8, 0.1, 0.8, 0.8, 0.8])
    record = train.main([*FLAGS, "--on-collapse", "rollback", "--prune", "high", "--epoch", "1",
                         "--out", "r"])
    assert record["n_kept"] == 120 and record["examples"] == 200 + 120 * 4
    assert json.loads(Path("r/train.json").read_text())["collapses"][0]["epoch"] == 2


@pytest.mark.parametrize("stop", [2, 3])  # before the epoch after the rollback ends, and after it
def test_a_run_that_rolled_back_resumes_to_the_same_weights(measured, cut_off, stop):
    values = [0.8, 0.8, 0.1, 0.8, 0.8]
    flags = [*FLAGS, "--on-collapse", "rollback"]
    measured(values)
    train.main([*flags, "--out", "whole"])
    measured(values)
    with cut_off(stop):
        train.main([*flags, "--out", "cut"])
    measured(values[2:] if stop == 2 else [0.8])
    record = train.main([*flags, "--out", "cut"])
    assert same("whole", "cut") and len(record["collapses"]) == 1


def test_between_checks_a_resumed_run_rolls_back_to_the_same_epoch(measured, cut_off):
    """It is checked after epochs 1 and 3, and cut off in epoch 3."""
    flags = [*FLAGS, "--on-collapse", "rollback"]
    for name in ("whole", "cut"):
        measured([0.8, 0.1, 0.8, 0.8], epochs=(1, 3, 4))
        if name == "cut":
            with cut_off(2):
                train.main([*flags, "--out", name])
        record = train.main([*flags, "--out", name])
        (event,) = record["collapses"]
        assert (event["epoch"], event["lost"], record["examples"]) == (3, 400, 6 * 200)
    assert same("whole", "cut")
    measured([], epochs=())
    for name, value in by_hand(4, before=1).items():
        assert torch.equal(value, weights("cut")[name])


@pytest.mark.parametrize("flags", [["--on-collapse", "off"], ["--limit", "20"]])
def test_without_checks_the_cells_are_empty_and_the_verdict_open(monkeypatch, capsys, flags):
    """Off, or so few examples that their training does not pay for one check."""
    monkeypatch.setattr(guard.Guard, "measure", None)
    record = train.main([*FLAGS, *flags, "--out", "r"])
    with open("r/log.csv") as file:
        assert all(row["robust"] == row["clean"] == "" for row in csv.DictReader(file))
    assert record["collapsed"] is None and record["guard_seconds"] == 0
    assert prune.main(["r"])["n_kept"] and "collapsed" not in capsys.readouterr().err


COUNTS = {  # flags -> the size of the slice; after which epochs it is checked
    "--dataset mnist": (240, set(range(1, 11))), "--dataset cifar10": (200, set(range(1, 16))),
    "--dataset mnist --prune high --p 0.4": (144, set(range(1, 11))),
    "--dataset mnist --on-collapse off": (240, set()),
    "--dataset digits": (32, {5, 10, 15, 20, 25, 30}),
    "--dataset digits --prune high": (32, {3, 15, 30}),
    "--dataset digits --epochs 5": (32, {5}), "--dataset digits --epochs 4": (32, set())}


@pytest.mark.parametrize("flags", COUNTS)
def test_checks_are_as_many_as_two_percent_of_the_passes_pay_for(flags):
    """On digits, RS+FGSM takes 5 passes for each of 1,438 examples and 30 epochs; 2 % of them
    are 4,314. A check of 32 takes 704."""
    _, a = config.parse(flags.split())
    n = {"digits": 1438, "mnist": 60000, "cifar10": 50000}[a.dataset]
    images, labels = torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64)
    watch = guard.Guard(a, data.Dataset(a.dataset, images, labels, images, labels, ["0"], n))
    assert (watch.size, watch.due) == COUNTS[flags]


@pytest.mark.parametrize(("flags", "count"), [
    ([], 5), (["--attack", "none"], 3), (["--attack", "pgd", "--pgd-steps", "7"], 17),
    (["--loss", "trades", "--pgd-steps", "2"], 11)])
def test_passes_are_those_of_the_network(flags, count):
    """A forward pass, and a backward pass to the image, counted; one to the weights is as much."""
    _, a = config.parse([*FLAGS, "--batch-size", "200", *flags])
    training, made = train.prepared(a, CPU)[0], [0]

    def counted(module, inputs, output):
        made[0] += 1
        if output.requires_grad:
            made[0] += 1 + any(weight.requires_grad for weight in module.parameters())

    training.model.register_forward_hook(counted)
    training.guard.due.clear()
    training.epoch(0, train.tqdm(disable=True))
    assert made[0] == a.passes == count


def test_a_second_collapse_under_the_remedy_is_only_reported(measured):
    measured([0.8, 0.1, 0.8, 0.1, 0.1, 0.1])
    record = train.main([*FLAGS, "--on-collapse", "rollback", "--out", "r"])
    assert [event["action"] for event in record["collapses"]] == ["rollback", "warn"]


def test_the_slice_is_of_the_training_set_and_small():
    _, settings = config.parse(["--dataset", "synthetic", "--prune", "high", "--p", "0.5"])
    training = train.prepared(settings, CPU)[0]
    watch = training.guard
    assert len(watch.ids) == watch.size == 32  # the least; 1/250 of an epoch where that is more
    assert torch.equal(watch.images, training.dataset.images[watch.ids])
    robust, clean = watch.measure(training.result)
    assert 0 <= robust <= clean <= 1
    assert training.model.training
