"""The verdicts and their tables follow from the records by hand."""
import json
import re
import shutil

import numpy as np
import pytest
from conftest import row

from experiments import claims, figures, render, studies
from experiments.records import Records


def test_differences_are_paired_by_seed():
    rows = [row("a", 0, 0.5), row("b", 0, 0.4), row("a", 1, 0.9), row("b", 1, 0.7),
            row("a", 2, 0.1)]  # b has no seed 2
    found = claims.by_seed(rows, claims.less("a", "b"))
    np.testing.assert_allclose(found, [0.1, 0.2])
    both = (*claims.less("a", "b"), (2, "a", "clean_accuracy"))
    np.testing.assert_allclose(claims.by_seed(rows, both), [1.9, 2.0])


@pytest.mark.parametrize(("values", "bound", "below", "clear", "says"), [
    ([0.1, 0.11, 0.12], 0, False, True, "holds"),
    ([0.1, 0.11, 0.12], 0, True, True, "does not hold"),
    ([-0.1, -0.11, -0.12], 0, True, True, "holds"),
    ([-0.1, -0.11, -0.12], 0, False, True, "does not hold"),
    ([0.1, 0.11, 0.12], 0.2, True, True, "holds"),
    ([0.1, -0.2, 0.3], 0, True, False, "no clear difference"),
    ([0.1, 0.11], 0, False, True, "not yet measured"), ([], 0, False, False, "not yet measured")])
def test_verdicts(values, bound, below, clear, says):
    claim = claims.Claim("", "", "", "", bound=bound, below=below)
    assert claims.verdict(claim, np.array(values), clear) == says


def test_every_claim_is_about_runs_of_its_experiment():
    every = [*(claim for of in claims.DECISIVE.values() for claim in of), *claims.OTHERS]
    assert len(set(every)) == len(every)
    for claim in every:
        assert bool(claim.terms) == (claim.values is None)
        if claim.terms:
            (part,) = (p for p in studies.EXPERIMENTS[claim.experiment] if p.setup == claim.setup)
            assert {arm for _, arm, _ in claim.terms} <= set(part.arms), claim
            assert part.seeds >= studies.LEAST


def test_a_claim_may_be_about_other_numbers(tmp_path):
    rows = [{"name": "mnist", "rho": 200}, {"name": "pruned mnist", "rho": 150},
            {"name": "pruned mnist", "rho": 100}]
    claim = claims.Claim("", "", "", "", values=claims.relative_to_mnist("rho"))
    assert not len(claims.measured(claim, Records(tmp_path)))
    (tmp_path / "geometry.json").write_text(json.dumps({"rows": rows}))
    np.testing.assert_allclose(claims.measured(claim, Records(tmp_path)), [-0.25, -0.5])


def test_arms_of_equal_time_have_seen_as_many_examples():
    for setup, pairs in claims.EQUAL.items():
        epochs = {"mnist-robust": 8, "digits": 30, "cifar10-width16": 15}[setup]
        for p, fewer in pairs.items():
            assert fewer == round(3 + (epochs - 3) * (1 - p))


def test_records_become_tables_verdicts_and_pictures(pages, monkeypatch):
    drawn = ("pruning-mnist", "frontier-mnist")
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in drawn})
    shutil.rmtree(pages / "results/mnist-robust", ignore_errors=True)
    text = render.block("claims", pages) + render.block("other-claims", pages)
    command = "`python -m experiments table1 --dataset mnist --jobs 2`"
    assert text.count(f"| not yet measured: {command} |") == 2  # of those that decide
    assert f"| MNIST, robust recipe | {command} |" in text
    for part in (p for p in studies.EXPERIMENTS["frontier"] if p.setup == "mnist-robust"):
        for i, run in enumerate(part._replace(n=500).runs(range(3))):
            path = pages / f"results/{run.name}.json"
            path.parent.mkdir(exist_ok=True)
            full = run.arm == "full"
            path.write_text(json.dumps({
                **row(run.arm, run.seed, 0.8 if full else 0.7 + run.seed / 1000),
                "robust": "1" * 400 + "0" * 100 if full else "0" * 500, "flags": run.flags,
                "attack": run.how.attack,
                "n": 500, "examples": 1000 - i, "train_seconds": 9, "prune_seconds": 0}))
    said = [line for line in render.block("claims", pages).splitlines()
            if "MNIST, robust" in line and "0.6 is more robust than all data |" in line]
    assert len(said) == 1 and "| **does not hold** | -0.099 (-0.101 to -0.097) | 3 |" in said[0]
    assert "| all data | 3 | 0.900 ± 0.000 | 0.800 ± 0.000 |" in render.block("table1", pages)
    assert re.search(r"\| full \| [\d.]+ \| 1.000 ± 0.000 \| 3 \|",
                     render.block("frontier", pages))  # cut to 200 images
    assert {f"figures/{name}.png" for name in drawn} <= set(render.render(pages))
