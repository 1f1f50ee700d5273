"""The optimiser's flags against torch by hand; what they refuse; the help and the record."""
import json

import pytest
import torch
from conftest import refused

import train
from advprune import inputs, models, recipes, settings

FLAGS = ["--dataset", "synthetic", "--limit", "32", "--batch-size", "32", "--epochs", "2",
         "--attack", "none", "--out", "run"]
SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW


@pytest.mark.parametrize(("flags", "kind", "how"), [
    ([], ADAM, dict(lr=5e-3)), (["--lr", "0.02"], ADAM, dict(lr=0.02)),
    (["--weight-decay", "0.1"], ADAM, dict(lr=5e-3, weight_decay=0.1)),
    (["--optimizer", "adamw", "--lr", "0.01", "--weight-decay", "0.3"], ADAMW,
     dict(lr=0.01, weight_decay=0.3)),
    (["--optimizer", "sgd", "--lr", "0.1"], SGD, dict(lr=0.1, momentum=0.9)),
    (["--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.5", "--weight-decay", "0.1"], SGD,
     dict(lr=0.1, momentum=0.5, weight_decay=0.1)),
    (["--optimizer", "sgd", "--lr", "0.1", "--nesterov"], SGD,
     dict(lr=0.1, momentum=0.9, nesterov=True)),
    (["--optimizer", "sgd", "--lr", "0.1", "--momentum", "0"], SGD, dict(lr=0.1)),
], ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_two_steps_are_torchs(flags, kind, how):
    args = settings.parse([*FLAGS, *flags])
    training = train.Training(args, inputs.dataset(args, torch.device("cpu")),
                              torch.device("cpu"))
    model = models.build(**args.network)
    model.load_state_dict(training.model.state_dict())
    opt = kind(model.parameters(), **how)
    dataset = training.dataset
    for epoch in range(2):
        training.epoch(epoch, train.tqdm(disable=True))
        ids = torch.arange(32)
        x = dataset.batch(ids, args.seed, epoch, args.pad, args.flip)
        opt.param_groups[0]["lr"] = train.lr_at((epoch + 1) / 2, how["lr"], args.peak)
        opt.zero_grad()
        torch.nn.functional.cross_entropy(model(x), dataset.labels).backward()
        opt.step()
    assert opt.param_groups[0]["lr"] == 0
    rate = train.lr_at(0.5, how["lr"], args.peak)
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=rate * 2e-2)


def test_what_was_used_is_recorded():
    flags = ["--optimizer", "sgd", "--lr", "0.1", "--momentum", "0.5", "--nesterov",
             "--weight-decay", "0.01"]
    train.main([*FLAGS, *flags])
    with open("run/config.json") as file:
        used = json.load(file)["args"]
    wanted = dict(optimizer="sgd", lr=0.1, momentum=0.5, nesterov=True, weight_decay=0.01)
    assert {name: used[name] for name in wanted} == wanted
    cifar = settings.parse(["--dataset", "cifar10"])
    assert (cifar.optimizer, cifar.lr, cifar.momentum, cifar.nesterov, cifar.weight_decay) == (
        "sgd", 0.2, 0.9, False, 5e-4)


@pytest.mark.parametrize(("flags", "words"), [
    (["--optimizer", "sgd"], ["--lr", "synthetic"]), (["--optimizer", "adamw"], ["--lr"]),
    (["--optimizer", "rmsprop"], ["rmsprop"]), (["--momentum", "0.5"], ["--momentum", "adam"]),
    (["--momentum", "0"], ["--momentum", "adam"]), (["--nesterov"], ["--nesterov", "adam"]),
    (["--optimizer", "sgd", "--lr", "1", "--nesterov", "--momentum", "0"], ["--momentum above"]),
    (["--optimizer", "sgd", "--lr", "1", "--momentum", "1"], ["--momentum", "below 1"]),
    (["--weight-decay", "-1"], ["--weight-decay", "at least 0"]),
    (["--eps-floor", "0"], ["--eps-floor"]), (["--beta", "0"], ["--beta", "trades"]),
])
def test_what_makes_no_sense_is_refused(tmp_path, capsys, flags, words):
    err = refused(train.main, [*FLAGS, *flags], capsys)
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


def test_the_help_names_the_recipe_of_each_data_set(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for line in ("digits, folder 30; mnist, fashion-mnist 10; cifar10 15; synthetic 5",
                 "peak learning rate (digits, mnist, fashion-mnist, synthetic 0.005; cifar10, "
                 "folder 0.2)", "of SGD (0.9)"):
        assert line in said
    for name in ("epsilon", "batch_size", "optimizer", "weight_decay", "pgd_steps"):
        assert recipes.shown(name) in said.replace("- ", "-"), name
