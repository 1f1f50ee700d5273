"""Outputs that cannot be written are refused before any work is done."""
import pytest

import benchmark
import evaluate
import geometry
import perceptron
import prune
import toy_model
import train
from advprune import data, pruning


@pytest.fixture
def no_work(monkeypatch):
    """Whatever a script would do for long fails."""
    def work(*_, **__):
        raise AssertionError("work was begun")

    for place, name in ((data, "load"), (pruning, "score"), (toy_model, "study"),
                        (perceptron, "study"), (benchmark.kernels, "measure"),
                        (evaluate.Evaluation, "__init__")):
        monkeypatch.setattr(place, name, work)


SCRIPTS = {"train": (train, ["--dataset", "synthetic"]), "toy_model": (toy_model, []),
           "perceptron": (perceptron, []), "geometry": (geometry, ["synthetic"])}


@pytest.mark.parametrize("out", ["afile/x", "afile/x/y", ".", "there", "afile"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_folders(script, out, no_work, tmp_path, capsys):
    (tmp_path / "afile").touch()
    (tmp_path / "there").mkdir()
    module, flags = SCRIPTS[script]
    refused(module, [*flags, "--out", out], tmp_path, capsys)


@pytest.mark.parametrize("flag", ["--json", "--figure"])
@pytest.mark.parametrize("file", ["nodir/x.json", "afile/x.json", "afile", "."])
def test_files(flag, file, no_work, tmp_path, capsys):
    (tmp_path / "afile").touch()
    refused(benchmark, ["kernels", flag, file], tmp_path, capsys)


@pytest.mark.parametrize("out", ["afile/x", "afile", "."])
def test_scores_of_a_run(trained, out, monkeypatch, tmp_path, capsys):
    run = str(trained())
    monkeypatch.setattr(pruning, "score", lambda *_, **__: 1 / 0)
    (tmp_path / "afile").touch()
    refused(prune, [run, "--out", out], tmp_path, capsys)


@pytest.mark.parametrize("out", ["afile/x.json", "afile", "nodir/x.json", "."])
def test_evaluations_of_a_run(trained, out, monkeypatch, tmp_path, capsys):
    run = str(trained())
    monkeypatch.setattr(evaluate.Evaluation, "__init__", lambda *_: 1 / 0)
    (tmp_path / "afile").touch()
    refused(evaluate, [run, "--out", out], tmp_path, capsys)


def refused(module, argv, folder, capsys):
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        module.main(argv)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(folder.rglob("*")) == before
