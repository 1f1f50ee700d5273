"""Outputs that are not free are refused before any work is done; a finished one is said again."""
import pytest
from conftest import ended

import evaluate
import prune
import toy_model
import train
from advprune import data, pruning


@pytest.fixture
def places(tmp_path):
    """What stands where an output is asked for."""
    (tmp_path / "afile").touch()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine.txt").touch()


@pytest.mark.parametrize("out", ["afile/x", "afile/x/y", ".", "there", "afile"])
@pytest.mark.parametrize(("script", "flags"), [
    (train, ["--dataset", "synthetic"]), (toy_model, ["--n", "100"]), (prune, ["RUN"]),
    (evaluate, ["RUN"])], ids=lambda v: "" if isinstance(v, list) else v.__name__)
def test_refused(script, flags, out, places, trained, monkeypatch, tmp_path, capsys):
    argv = [str(trained()) if word == "RUN" else word for word in flags]
    for place, name in ((train.Training, "epoch"), (pruning, "score"), (toy_model, "study"),
                        (evaluate.Evaluation, "__init__"), (data.Dataset, "batches")):
        monkeypatch.setattr(place, name, lambda *_, **__: 1 / 0)
    before = sorted(tmp_path.rglob("*"))
    code, printed, said = ended(script.main, [*argv, "--out", out], capsys)
    assert (code, printed, len(said)) == (2, "", 1)
    assert out.partition("/")[0] in said[0]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("script", "words"), [
    (train, ["--dataset", "synthetic", "--limit", "40", "--epochs", "1"]),
    (toy_model, ["--n", "100"]), (prune, ["RUN", "--suspects", "3"]),
    (evaluate, ["RUN", "--attack", "fgsm", "--n", "9", "--until", "0.5"])])
def test_the_same_command_says_the_same_record_again(script, words, trained, capsys):
    argv = [str(trained()) if word == "RUN" else word for word in [*words, "--out", "out"]]
    (_, first, _), (code, again, said) = (ended(script.main, argv, capsys) for _ in range(2))
    assert code == 0 and any("out is finished" in line for line in said)
    assert again.splitlines()[-1] == first.splitlines()[-1]
