"""Selection on worked cases and by its properties; scores; the script."""
import json

import numpy as np
import pytest
import torch

import prune
from advprune import attacks, data, models, pruning

SCORES = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 0.0, 7.0, 8.0, 6.0])


@pytest.mark.parametrize(("how", "kept"), [
    ("high", [0, 1, 2, 3, 4, 6]),          # 9, 8, 7, 6 go
    ("low", [0, 2, 5, 7, 8, 9]),           # 0, 1, 2, 3 go
    ("low+high", [0, 2, 3, 4, 7, 9]),      # 0, 1 and 9, 8 go
    ("middle", [1, 3, 5, 6, 7, 8]),        # nearest the mean 4.5: 5, 4, 3, 6 go
    ("none", list(range(10))),
])
def test_select_worked_case(how, kept):
    assert pruning.select(SCORES, how, 0.4).tolist() == kept


def test_odd_drop_takes_the_extra_one_from_the_high_tail():
    assert pruning.select(SCORES, "low+high", 0.3).tolist() == [0, 1, 2, 3, 4, 7, 9]


@pytest.mark.parametrize("how", ["high", "low", "low+high", "middle"])
def test_ties_keep_the_lowest_ids(how):
    assert pruning.select(torch.ones(10), how, 0.4).tolist() == [0, 1, 2, 3, 4, 5]
    two = torch.tensor([1.0, 2, 1, 2, 1, 2, 1, 2])
    worked = {"high": [0, 1, 2, 3, 4, 6], "low": [0, 1, 2, 3, 5, 7],
              "low+high": [0, 1, 2, 3, 4, 5], "middle": [0, 1, 2, 3, 4, 5]}
    assert pruning.select(two, how, 0.25).tolist() == worked[how]


@pytest.mark.parametrize("how", pruning.STRATEGIES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.6, 0.999])
@pytest.mark.parametrize("balanced", [False, True])
def test_every_strategy_keeps_the_exact_number_sorted(how, p, balanced):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(1003, generator=generator).round(decimals=2)  # many ties
    labels = torch.randint(7, (1003,), generator=generator) if balanced else None
    kept = pruning.select(scores, how, p, 1, labels)
    assert len(kept) == 1003 - (0 if how == "none" else round(p * 1003))
    assert torch.equal(kept, kept.unique())
    if how == "none" or p == 0:
        return
    dropped = scores[~torch.isin(torch.arange(1003), kept)]
    if not balanced and how == "high":
        assert dropped.min() >= scores[kept].max()
    if not balanced and how == "low":
        assert dropped.max() <= scores[kept].min()
    if balanced:
        lost = labels.bincount() - labels[kept].bincount(minlength=7)
        assert (lost - p * labels.bincount()).abs().max() <= 1


def test_tails_are_disjoint_and_make_up_the_rest():
    ids = set(range(len(SCORES)))
    high, low = (ids - set(pruning.select(SCORES, how, 0.2).tolist()) for how in ("high", "low"))
    both = ids - set(pruning.select(SCORES, "low+high", 0.4).tolist())
    assert not high & low
    assert both == high | low


def test_random_follows_the_seed_alone():
    once, again, other = (pruning.select(torch.rand(500), "random", 0.4, s) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, float("nan")])
def test_p_outside_is_refused(p):
    with pytest.raises(ValueError, match="p is the fraction"):
        pruning.select(SCORES, "high", p)


def test_non_finite_scores_are_counted():
    bad = torch.tensor([1.0, float("nan"), float("inf"), 2.0])
    with pytest.raises(ValueError, match="2 of 4 scores"):
        pruning.select(bad, "high", 0.5)


def test_scores_do_not_depend_on_the_batch_size_or_leave_a_trace():
    torch.manual_seed(0)
    dataset = data.load("synthetic", limit=300)
    model = models.build("preactresnet18", 1, width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    budget = {"eps": 0.1, "alpha": 0.125, "seed": 3, "epoch": 2}
    one, other = (pruning.score(model, dataset.images, dataset.labels, **budget, batch_size=b)
                  for b in (64, 300))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    clean = pruning.score(model, dataset.images, dataset.labels, "clean-loss")
    with attacks.evaluating(model):
        logits = model(dataset.images.float() / 255)
    exact = torch.nn.functional.cross_entropy(logits, dataset.labels, reduction="none")
    torch.testing.assert_close(clean, exact, rtol=1e-4, atol=1e-5)
    assert (one > clean).float().mean() > 0.95


def test_script_scores_a_run_and_train_prunes_by_its_file(trained, tmp_path, capsys):
    import train

    run = str(trained())
    record = prune.main([run, "--prune", "low+high", "--p", "0.25", "--class-balanced"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
    assert {"source", "score", "prune", "p", "n", "n_kept", "scores_file"} <= record.keys()
    saved = np.load(record["scores_file"])
    assert (len(saved["scores"]), len(saved["kept"])) == (record["n"], record["n_kept"])
    assert record["n_kept"] == record["n"] - round(0.25 * record["n"])
    by_file = train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "2", "--p",
                          "0.25", "--prune", "low+high", "--class-balanced", "--out",
                          str(tmp_path / "r"), "--scores", record["scores_file"]])
    assert by_file["epoch"] == 0
    assert np.array_equal(np.load(tmp_path / "r/scores.npz")["kept"], saved["kept"])
    with pytest.raises(SystemExit) as again:
        prune.main([run, "--prune", "low+high", "--p", "0.25", "--class-balanced"])
    assert again.value.code == 2
