"""Studies of wrong labels: how they are made, and what is said of what was kept and dropped."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from advprune import data, pruning
from experiments import __main__ as experiments
from experiments import labels, studies

STUDY = """
seeds = 1
attack = "fgsm"
n = 20
also = "apgd-ce,apgd-t"
also_n = 4
[setup]
dataset = "digits"
limit = 100
width = 2
epochs = 2
labels = "symmetric-0.4"
[arms.all]
[arms.oracle]
score = "oracle.py:digits"
prune = "high"
p = 0.2
epoch = 0
[arms.clean-first]
score_model = "first"
first_epochs = 1
prune = "high"
p = 0.2
[compare]
clean-first = "all"
"""


def test_symmetric_labels_have_the_share_and_any_other_class():
    own = np.repeat(np.arange(5), 2000)
    noisy = labels.symmetric(own, 5, 0.3, 1)
    assert (noisy != own).sum() == 3000
    moved = np.zeros((5, 5))
    np.add.at(moved, (own, noisy), 1)
    np.testing.assert_allclose(moved[~np.eye(5, dtype=bool)], 150, atol=60)  # 5 deviations
    assert np.array_equal(noisy, labels.symmetric(own, 5, 0.3, 1))
    assert not np.array_equal(noisy, labels.symmetric(own, 5, 0.3, 2))


def test_a_study_of_wrong_labels_from_nothing_to_the_table():
    studies.read.cache_clear()
    shutil.copy(ROOT / "experiments/oracle.py", ".")
    Path("noisy.toml").write_text(STUDY)
    table = Path(experiments.main(["study", "noisy.toml"])["written"][0]).read_text()
    made, own = np.load("runs/noisy/symmetric-0.4-0.npy"), data.load("digits").labels.numpy()
    share = (made != own)[:100].mean()
    rows = {line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[-5:]]
            for line in table.splitlines()}
    assert rows["arm"][1:] == ["dropped", "wrong among kept", "precision", "recall"]
    assert rows["all"] == ["200", "0.000", f"{share:.3f}", "—", "0.000"]
    assert rows["oracle"] == ["160", "0.200", f"{(share - 0.2) / 0.8:.3f}", "1.000",
                              f"{0.2 / share:.3f}"]
    assert rows["clean-first"][0] == "220"  # 160, and 100 of 3 passes; RS+FGSM takes 5
    record = json.loads(Path("results/noisy/clean-first-0.json").read_text())
    assert record["flags"].startswith("--dataset digits") and record["first_examples"] == 100
    assert record["apgd-ce,apgd-t"]["n"] == 4
    kept, dropped = record["wrong"]["kept"], record["wrong"]["dropped"]
    assert (kept["labels"], dropped["labels"]) == (80, 20)
    assert kept["wrong"] + dropped["wrong"] == round(100 * share)


def test_a_file_of_labels_lies_beside_the_study():
    found = studies.resolved({"labels": "../worst.npy", "score_model": "first"}, "/a/b/mine.toml")
    assert found == {"labels": "/a/b/../worst.npy", "score_model": "first"}
    assert labels.file_of(found, 0, "nowhere", "data") == "/a/b/../worst.npy"


def test_what_cleanlab_names_is_dropped():
    pytest.importorskip("cleanlab")
    space = {}
    exec((ROOT / "examples/strategies/cleanlab_issues.py").read_text(), space)
    own = torch.arange(200) % 4
    images = torch.zeros(200, 1, 2, 2, dtype=torch.uint8)
    images.view(200, 4)[torch.arange(200), own] = 255
    given = own.clone()
    given[::20] = (given[::20] + 1) % 4
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4, bias=False))
    model[1].weight.data = 5 * torch.eye(4)
    kept, _ = pruning.keep(space["issues"], torch.zeros(200), given, 0.4, model=model,
                           images=images)
    assert kept.tolist() == (given == own).nonzero()[:, 0].tolist()
