"""`python -m experiments`: what it tells the scripts, and which records there are."""
from pathlib import Path
from types import SimpleNamespace

from conftest import ROOT

from advprune import config
from experiments import __main__ as experiments
from experiments import runner, studies

PUMA = str(ROOT / "experiments/mnist-pgd5.toml")


def test_seeds_are_a_number_or_a_range():
    assert list(experiments.seeds("3")) == [0, 1, 2]
    assert list(experiments.seeds("3-5")) == [3, 4, 5]


def test_flags_choose_the_parts_of_an_experiment():
    def parts(name, dataset=None, arms=None, n_eval=None):
        found = experiments.parts_of(name, SimpleNamespace(dataset=dataset, arms=arms,
                                                           n_eval=n_eval))
        return [(part.setup, part.arms, part.n) for part in found]

    assert parts("table1", "cifar10") == [("cifar10-width16", (
        "full", "random-0.2", "extremes-0.2", "low+high-0.2", "random-0.6", "extremes-0.6",
        "low+high-0.6"), 300)]
    assert parts("table1", arms="small-step", n_eval=7) == [("mnist-paper", ("small-step",), 7)]
    assert not parts("digits", "mnist") and not parts("toy")


def test_the_margins_and_half_of_the_budget_are_filled_in(monkeypatch):
    told = []
    monkeypatch.setattr(runner.train, "main", told.append)
    monkeypatch.setattr(runner, "measure_margins", lambda run, _: f"margins-{run.seed}")
    runner.train_arm(studies.Run(PUMA, "puma-floor-0.3", 7, 500), "here")
    half = config.RECIPES["mnist"]["epsilon"] / 2
    assert " ".join(told[0]) == (
        "--dataset mnist --attack pgd --pgd-steps 5 --alpha 0.1 --epochs 5 --prune puma --p 0.3 "
        f"--scores margins-7 --eps-floor {half} --seed 7 --data-dir here "
        "--out runs/mnist-pgd5/puma-floor-0.3-7")


def test_a_script_makes_its_record_once(capsys):
    calls = []

    def main(words):
        calls.append(words)
        Path(words[-1]).mkdir(parents=True)
        Path(words[-1], "made.json").write_text("made")

    for _ in range(2):
        experiments.by_script("one", SimpleNamespace(main=main), ["-x"], "made.json")
    assert calls == [["-x", "--out", "runs/one"]]
    assert Path("results/one.json").read_text() == "made"
    assert capsys.readouterr().err == "results/one.json is there\n"


def test_each_record_in_results_is_of_a_run_of_an_experiment_with_enough_images():
    wanted = {run for parts in studies.EXPERIMENTS.values() for part in parts
              for run in part.runs()}
    there = {run for run in wanted if (ROOT / "results" / f"{run.name}.json").exists()}
    assert {f"{run.name}.json" for run in there} == {
        str(path.relative_to(ROOT / "results")) for path in ROOT.glob("results/*/*.json")}
    for run in there:
        record = studies.record(ROOT / "results", run)
        assert record is not None, run
        assert (record["setup"], record["arm"], record["seed"], record["n"]) == (
            run.setup, *run[1:])
        assert record["attack"] == run.how.attack
