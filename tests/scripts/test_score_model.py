"""--score-model: scores of another network, or of one that is trained first, without an attack."""
import json
import shutil
from pathlib import Path

import killing
import numpy as np
import pytest
from conftest import refused, same, write_images

import prune
import train
from advprune import config, data, pruning
from experiments.labels import symmetric

FLAGS = ["--dataset", "synthetic", "--limit", "200", "--epochs", "3", "--width", "2"]
FIRST = [*FLAGS, "--prune", "high", "--p", "0.25", "--score-model", "first"]


def test_first_is_two_commands_in_one():
    record = train.main([*FIRST, "--first-epochs", "2", "--out", "run"])
    train.main([*FLAGS, "--epochs", "2", "--attack", "none", "--out", "by hand"])
    assert same("run/first", "by hand")
    train.main([*FLAGS, "--prune", "high", "--p", "0.25", "--score", "clean-loss",
                "--score-model", "by hand", "--out", "again"])
    assert same("run", "again")
    with np.load("run/scores.npz") as file:
        assert str(file["kind"]) == "clean-loss" and len(file["kept"]) == 150
    assert record["epoch"] == 0 and record["n_seen"] == 150
    # RS+FGSM takes five passes over an image, and a step without an attack takes three.
    assert (record["first_examples"], record["examples"]) == (400, 3 * 150 + 240)
    first = json.loads(Path("run/first/train.json").read_text())
    assert record["first_seconds"] == first["train_seconds"] > 0
    assert prune.main(["run/first", "--suspects", "3"])["suspects"]


@pytest.mark.parametrize(("epochs", "stop", "segments"), [("2", 0, 1), ("2", 1, 2), ("1", 1, 1)])
def test_what_was_cut_off_goes_on_to_the_same_weights(epochs, stop, segments, cut_off):
    """In the first epoch of the first training, in its second, and after the pruning."""
    command = [*FIRST, "--first-epochs", epochs]
    train.main([*command, "--out", "whole"])
    with cut_off(stop):
        train.main([*command, "--out", "cut"])
    record = train.main([*command, "--out", "cut"])
    assert killing.results(Path("cut")) == killing.results(Path("whole"))
    assert same("cut/first", "whole/first") and record["first_seconds"] > 0
    first = json.loads(Path("cut/first/train.json").read_text())
    assert len(first["segment_seconds"]) == segments  # no epoch was trained twice


@pytest.mark.parametrize("epochs", [[], ["--minutes", "0.1"]])
def test_first_goes_before_as_many_epochs_as_follow(epochs, monkeypatch):
    """As follow from the number of images of a folder, or from the time."""
    monkeypatch.setattr(config, "UPDATES", 1)
    write_images("01", train=4, val=4)
    record = train.main(["--dataset", "folder", "--data-dir", "images", "--image-size", "8",
                         "--model", "mnist-net", "--width", "1", *FIRST[8:], *epochs, "--out",
                         "run"])
    assert record["first_examples"] == 5 * 8 and record["n_kept"] == 6
    assert record["epochs"] == 30 or epochs


def test_between_the_two_trainings_the_first_is_not_repeated(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    train.main([*FIRST, "--out", "whole"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Training, "prune", interrupted)
        train.main([*FIRST, "--out", "cut"])
    made = Path("cut/first/train.json").read_text()
    train.main(["--resume", "cut"])
    assert Path("cut/first/train.json").read_text() == made
    assert killing.results(Path("cut")) == killing.results(Path("whole"))


@pytest.mark.parametrize("named", [True, False])
def test_two_processes_train_first_too(forks, tmp_path, named):
    stranger = tmp_path / "runs/first/file"
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    command = killing.Command(forks, "train", tmp_path / "output", processes=2)
    command.run(*FIRST, "--first-epochs", "2", *(["--out", "run"] if named else []))
    made = tmp_path / ("run" if named else "runs/synthetic-rs-fgsm-high-p0.25-e0-s0")
    train.main([*FIRST, "--first-epochs", "2", "--out", "alone"])
    kept = [set(np.load(path / "scores.npz")["kept"]) for path in (made, tmp_path / "alone")]
    assert len(kept[0]) == 150 and len(kept[0] & kept[1]) >= 147  # up to rounding
    assert (made / "first/train.json").exists()
    assert [*stranger.parent.iterdir()] == [stranger]


NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(784, classes))
"""


def test_first_trains_the_networks_code_that_the_run_began_with(cut_off, capsys):
    Path("net.py").write_text(NETWORK)
    command = [*FIRST[:6], *FIRST[8:], "--first-epochs", "2", "--model", "net.py:Net"]
    train.main([*command, "--out", "whole"])
    with cut_off(0):
        train.main([*command, "--out", "cut"])
    Path("net.py").write_text(NETWORK.replace("784, classes", "784, classes, bias=False"))
    assert "--trust-code" in refused(train.main, ["--resume", "cut"], capsys)
    train.main(["--resume", "cut", "--trust-code"])
    assert same("cut", "whole") and same("cut/first", "whole/first")


@pytest.mark.parametrize(("share", "tolerance"), [(0.3, 0.07), (0.0, 0.0)])
def test_p_auto_drops_as_many_as_look_wrong(share, tolerance, cut_off, tmp_path, capsys):
    own = data.load("digits").labels.numpy()
    np.save("labels.npy", symmetric(own, 10, share, seed=0))
    flags = ["--dataset", "digits", "--epochs", "4", "--labels", "labels.npy", "--prune", "high",
             "--p", "auto", "--score-model", "first"]
    record = train.main([*flags, "--out", "whole"])
    assert abs(record["p"] - share) <= tolerance
    assert record["n_kept"] == len(own) - round(record["p"] * len(own))
    said = capsys.readouterr().out
    assert said.count(f"so p = {record['p']:.3f}") == 1
    assert ("counts as none" in said) == (share == 0)
    with cut_off(1):
        train.main([*flags, "--out", "cut"])
    assert train.main([*flags, "--out", "cut"])["p"] == record["p"]
    assert same("cut", "whole")
    for _ in range(2):  # once more, when it is finished
        again = prune.main(["whole/first", "--p", "auto"])
        assert [again[name] for name in ("p", "wrong_share", "n_kept", "score")] == [
            record["p"], record["wrong_share"], record["n_kept"], "clean-loss"]
        assert f"so p = {record['p']:.3f}" in capsys.readouterr().out
    prune.main(["whole", "--p", "auto"])
    assert "whole was trained under attack" in capsys.readouterr().err


def test_two_processes_find_the_same_p(forks, tmp_path):
    command = killing.Command(forks, "train", tmp_path / "output", processes=2)
    flags = [*FLAGS, "--prune", "high", "--p", "auto", "--score-model", "first"]
    command.run(*flags, "--every", "1", "--out", "two")
    train.main([*flags, "--out", "one"])
    two, one = (json.loads(Path(f"{name}/train.json").read_text()) for name in ("two", "one"))
    assert two["p"] == pytest.approx(one["p"], abs=0.02) and two["p"] > 0
    assert (tmp_path / "output").read_text().count("look wrong") == 1


def test_any_score_may_come_from_another_network(trained):
    train.main([*FLAGS, "--prune", "high", "--p", "0.25", "--score-model", str(trained()),
                "--out", "run"])
    from advprune import weights as stored

    a, dataset = config.parse(FLAGS)[1], data.load("synthetic", limit=200)
    wanted = pruning.score(stored.of_run(trained()), dataset.images, dataset.labels, "loss",
                           eps=a.epsilon, alpha=a.alpha)
    with np.load("run/scores.npz") as file:
        np.testing.assert_allclose(file["scores"], wanted, rtol=1e-4, atol=1e-6)


def test_a_network_that_collapsed_is_said(trained, tmp_path, capsys):
    run = shutil.copytree(trained(), tmp_path / "collapsed")
    record = json.loads((run / "train.json").read_text())
    (run / "train.json").write_text(json.dumps({**record, "collapsed": True}))
    train.main([*FLAGS, "--prune", "high", "--score-model", str(run)])
    assert f"{run} collapsed, so its scores say little" in capsys.readouterr().err


def test_a_rule_may_ask_the_network(trained):
    Path("own.py").write_text("""
def wrong(scores, labels, p, seed, epoch, *, model, images):
    assert not model.training and not model(images[:2] / 255).requires_grad
    return (model(images / 255).argmax(1) != labels).nonzero()[:, 0]
""")
    run = str(trained())
    train.main([*FLAGS, "--prune", "own.py:wrong", "--score-model", run, "--out", "run"])
    prune.main([run, "--prune", "own.py:wrong", "--out", "scored"])
    from advprune import weights as stored

    dataset = data.load("synthetic", limit=600)
    wrong = stored.of_run(run).eval()(dataset.images / 255).argmax(1) != dataset.labels
    for folder, n in (("run", 200), ("scored", 600)):
        with np.load(f"{folder}/scores.npz") as file:
            assert file["kept"].tolist() == wrong[:n].nonzero()[:, 0].tolist()
