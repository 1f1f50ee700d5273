"""--score and --prune FILE.py:NAME, and pruning again: a stranger's ideas train and go on."""
import json
import shutil
from pathlib import Path

import killing
import numpy as np
import pytest
import torch
from conftest import ROOT, refused, same, weights

import prune
import train
from advprune import config, pruning

MINE = '''
import random
import numpy as np
import torch

def plain(model, images, labels, ids):
    return -model(images).gather(1, labels[:, None])[:, 0]

class Losses:
    """Sees the training; its mean loss."""
    def __init__(self, n):
        self.sum, self.epochs = torch.zeros(n), 0

    def see(self, ids, labels, logits, losses, epoch):
        self.sum[ids] += losses
        self.epochs = epoch + 1

    def scores(self):
        return self.sum / max(self.epochs, 1)

def weighted(scores, labels, p, seed, epoch):
    ids = scores.argsort()[:len(scores) - round(p * len(scores))]
    return ids, torch.linspace(0.5, 1.5, len(ids))

def unsure(model, images, labels, ids):
    return model(images + 0.1 * torch.randn_like(images)).softmax(1).max(1).values

def lucky(scores, labels, p, seed, epoch):
    ids = torch.randperm(len(scores)).numpy()
    return random.sample(np.random.permutation(ids).tolist(), 100)

def nothing(scores, labels, p, seed, epoch):
    return torch.arange(len(scores)), torch.zeros(len(scores))

def double(scores, labels, p, seed, epoch):
    return torch.arange(len(scores)), torch.full((len(scores),), 2.0)
'''
FLAGS = ["--dataset", "synthetic", "--limit", "200", "--width", "2", "--epochs", "5"]
IDEA = [*FLAGS, "--score", "mine.py:Losses", "--prune", "mine.py:weighted", "--p", "0.3",
        "--epoch", "1", "--every", "2"]


@pytest.fixture(autouse=True)
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)


def test_a_score_and_a_rule_train_and_go_on_to_the_same_end(cut_off):
    train.main([*IDEA, "--out", "whole"])
    for stop in (2, 3):  # between two prunings, and before the second
        with cut_off(stop):
            train.main([*IDEA, "--out", "cut"])
    train.main(["--resume", "cut"])
    assert same("whole", "cut")
    own = json.loads(Path("cut/config.json").read_text())["own"]
    assert {flag: Path(code["name"]).name for flag, code in own.items()} == {
        "score": "mine.py:Losses", "prune": "mine.py:weighted"}
    for name in ("scores-1.npz", "scores-3.npz", "scores.npz"):
        with np.load(f"whole/{name}") as one, np.load(f"cut/{name}") as two:
            assert all(np.array_equal(one[key], two[key]) for key in one)
            assert len(one["kept"]) == 140 and one["weights"][one["kept"]].min() >= 0.5
            assert str(one["kind"]) == "mine.py:Losses"


def test_what_a_score_and_a_rule_draw_without_a_seed_is_repeated(cut_off, forks, tmp_path):
    flags = [*FLAGS, "--score", "mine.py:unsure", "--prune", "mine.py:lucky", "--epoch", "1",
             "--every", "2"]
    train.main([*flags, "--out", "whole"])
    with cut_off(3):  # after the second pruning
        train.main([*flags, "--out", "cut"])
    with cut_off(4):
        train.main([*flags, "--out", "cut"])
    train.main([*flags, "--out", "cut"])
    assert same("whole", "cut")
    command = killing.Command(forks, "train", tmp_path / "output", 2)
    command.run(*flags, "--out", str(tmp_path / "two"))
    for name in ("scores-1.npz", "scores-3.npz"):
        whole, cut, two = (np.load(f"{run}/{name}") for run in ("whole", "cut", "two"))
        np.testing.assert_array_equal(whole["scores"], cut["scores"])
        for other in (cut, two):
            np.testing.assert_array_equal(whole["kept"], other["kept"])


def test_code_that_changed_is_not_run_and_the_runs_own_needs_trust(cut_off, tmp_path, capsys):
    train.main([*IDEA, "--out", "whole"])
    with cut_off(2):
        train.main([*IDEA, "--out", "cut"])
    (tmp_path / "mine.py").write_text(MINE.replace("0.5, 1.5", "0.1, 0.2"))
    for command in ([*IDEA, "--out", "cut"], ["--resume", "cut"]):
        assert "--trust-code" in refused(train.main, command, capsys)
    train.main(["--resume", "cut", "--trust-code"])
    assert same("whole", "cut")


def test_two_processes_see_what_one_sees(forks, tmp_path):
    train.main([*IDEA, "--out", "alone"])
    command = killing.Command(forks, "train", tmp_path / "output", 2)
    command.run(*IDEA, "--out", str(tmp_path / "two"))
    with np.load("alone/scores-1.npz") as one, np.load("two/scores-1.npz") as two:
        np.testing.assert_allclose(two["scores"], one["scores"], rtol=0.02, atol=0.02)
        assert len(np.intersect1d(one["kept"], two["kept"])) >= 136


def test_scores_of_a_finished_run(capsys):
    train.main([*FLAGS, "--out", "run"])
    record = prune.main(["run", "--score", "mine.py:plain", "--prune", "mine.py:weighted", "--p",
                         "0.25"])
    assert record["n_kept"] == 150
    assert Path(record["scores_file"]).parent.name == "prune-mine-plain-mine-weighted-0.25"
    train.main([*FLAGS, "--prune", "high", "--scores", record["scores_file"], "--out", "again"])
    assert "for train.py" in refused(prune.main, ["run", "--score", "mine.py:Losses"], capsys)


def test_weights_reach_the_loss():
    sgd = [*FLAGS, "--optimizer", "sgd", "--lr"]
    rule = ["--p", "0", "--epoch", "0", "--prune"]
    train.main([*sgd, "0.1", "--out", "plain"])
    train.main([*sgd, "0.05", *rule, "mine.py:double", "--out", "double"])
    one, two = weights("plain"), weights("double")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    train.main([*sgd, "0.1", *rule, "mine.py:nothing", "--out", "nothing"])
    start = train.prepared(config.parse(FLAGS)[1], torch.device("cpu"))[0].model.state_dict()
    still = weights("nothing")
    assert all(torch.equal(still[name], value) for name, value in start.items())


@pytest.mark.parametrize(("flags", "pruned"), [
    (["--epoch", "1", "--every", "1"], [1, 2, 3, 4]), (["--epoch", "0", "--every", "3"], [0, 3]),
    (["--epoch", "1", "--every", "1", "--until-epoch", "3"], [1, 2]),
    (["--epoch", "2"], [2]), (["--epoch", "1", "--until-epoch", "2"], [1])])
def test_epochs_that_prune(flags, pruned, capsys):
    record = train.main([*FLAGS, "--prune", "random", "--p", "0.5", "--out", "run", *flags])
    a = config.parse([*FLAGS, "--prune", "random", *flags])[1]
    assert [epoch for epoch in range(5) if a.prunes(epoch)] == pruned
    assert capsys.readouterr().out.count("random pruning kept 100 of 200") == len(pruned)
    rows = Path("run/log.csv").read_text().splitlines()[1:]
    sizes = [int(row.split(",")[2]) for row in rows]
    last = a.until_epoch or 5
    assert sizes == [100 if pruned[0] <= epoch < last else 200 for epoch in range(5)]
    assert record["examples"] == sum(sizes)
    kept = [set(np.load(path)["kept"]) for path in Path("run").glob("scores-*.npz")]
    assert len({frozenset(ids) for ids in kept}) == len(kept)  # other examples each time


SCORE = "def bad(model, images, labels, ids): return "
RULE = "import torch\ndef bad(scores, labels, p, seed, epoch): return "


def test_a_rule_that_writes_into_its_arguments_changes_nothing():
    def rule(scores, labels, p, seed, epoch):
        scores.zero_()
        labels.zero_()
        return [0, 1]

    scores, labels = torch.rand(5), torch.arange(5)
    pruning.keep(rule, scores, labels, 0.5)
    assert labels.tolist() == [0, 1, 2, 3, 4] and scores.max() > 0


@pytest.mark.parametrize(("flag", "code", "words"), [
    ("--score", SCORE + "model(images)", r"bad must give one number for each example, \[\d+\], n"),
    ("--score", SCORE + "'text'", "bad must give one number .* not str"),
    ("--score", SCORE + "images.sum((1, 2, 3)) / 0 * 0", "200 of the 200 bad scores are not"),
    ("--score", SCORE + "labels / (1 / 0)", r"bad failed with ZeroDivisionError: .*line 1 of .*"),
    ("--score", SCORE + "open('gone.txt')", "FileNotFoundError: .*'gone.txt' .line 1"),
    ("--score", "class bad:\n    def __init__(self, n): pass", "with the methods see and scores"),
    ("--score", "class bad:\n    see = scores = len", "bad needs an epoch of training first"),
    ("--score", "import numpy\nclass bad:\n    see = scores = len\n"
     "    def __init__(self, n): self.losses = numpy.zeros(n)  # epoch 1",
     "own.py:bad keeps what cannot be saved"),
    ("--score", "import torch\n" + SCORE + "torch.autograd.grad(model(images).sum(), images)",
     "line 2 of .*own.py"),
    ("--prune", RULE + "scores > 0", "bad must give the ids that stay, .* torch.bool"),
    ("--prune", RULE + "[0, 1, 200]", "bad gives the id 200, but ids go from 0 to 199"),
    ("--prune", RULE + "[-1, 1]", "bad gives the id -1"),
    ("--prune", RULE + "[0, 1, 1]", "bad gives 1 of its 3 ids twice"),
    ("--prune", RULE + "[]", "bad keeps no example|whole numbers"),
    ("--prune", RULE + "([0, 1], [1.0, float('nan')])", "weights that are not finite"),
    ("--prune", RULE + "([0, 1], [1.0])", r"one number for each example, \[2\]"),
    ("--prune", "x = 1 / 0\n" + RULE + "1", "failed with ZeroDivisionError"),
    ("--prune", "good = 1", "has no function or class 'bad'"),
])
def test_bad_functions_are_one_sentence(flag, code, words, tmp_path, capsys):
    (tmp_path / "own.py").write_text(code + "\n")
    epoch = "1" if "epoch 1" in code else "0"
    flags = [*FLAGS, "--epoch", epoch, "--out", "run", flag, "own.py:bad"]
    flags += ["--prune", "high"] if flag == "--score" else []
    capsys.readouterr()
    with pytest.raises(train.UserError, match=words):
        train.main(flags)


# --- examples/strategies

STRATEGIES = ROOT / "examples/strategies"


@pytest.mark.parametrize("flags", [
    ["--score", "running-loss", "--prune", "infobatch.py:infobatch", "--p", "0.5", "--epoch", "1",
     "--every", "1", "--until-epoch", "4"],
    ["--score", "class_quotas.py:wrong", "--prune", "class_quotas.py:quotas", "--epoch", "1"],
    ["--score", "el2n.py:el2n", "--prune", "high", "--epoch", "1"],
    ["--score", "el2n.py:MeanEL2N", "--prune", "low", "--epoch", "2"]])
def test_the_examples_train(flags, tmp_path):
    for path in STRATEGIES.glob("*.py"):
        shutil.copy(path, tmp_path)
        assert len(path.read_text().splitlines()) <= 40
    assert train.main([*FLAGS, *flags, "--out", "run"])["clean_accuracy"] > 0


def example(name, function):
    space = {}
    exec((STRATEGIES / f"{name}.py").read_text(), space)
    return space[function]


def test_infobatch_keeps_the_hard_and_the_expected_gradient():
    scores, labels = torch.tensor([0.0, 0, 0, 0, 10, 10]), torch.zeros(6, dtype=torch.long)
    ids, share = pruning.keep(example("infobatch", "infobatch"), scores, labels, 0.5)
    assert len(ids) == 4 and {4, 5} <= set(ids.tolist())
    assert sorted(share[ids].tolist()) == [1, 1, 2, 2]
    assert share.sum() == 6


def test_quotas_by_hand():
    """Of two classes of 10, one wrong in 8 cases and one in 2: 8 of 10 that stay, and 2."""
    labels = torch.arange(20) // 10
    scores = torch.tensor([1.0] * 8 + [0] * 2 + [1] * 2 + [0] * 8)
    quotas = example("class_quotas", "quotas")
    for p, counts in ((0.5, [8, 2]), (0.25, [10, 5]), (0.0, [10, 10])):
        ids, _ = pruning.keep(quotas, scores, labels, p)
        assert labels[ids].bincount().tolist() == counts


def test_el2n_by_hand():
    score = example("el2n", "el2n")
    logits = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    found = score(lambda images: logits, None, torch.tensor([0, 1]), None)
    assert found.tolist() == pytest.approx([0.5**0.5, 2**0.5])
