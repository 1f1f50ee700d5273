"""study FILE.toml: from a file of 20 lines to runs, records, a table and a picture."""
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refused, write_images
from scipy import stats

import evaluate
from advprune import config, data
from experiments import __main__ as experiments
from experiments import studies, study

STUDY = """
seeds = 3
attack = "fgsm"
n = 50
[setup]
dataset = "synthetic"
limit = 100
width = 2
epochs = 3
[arms.fewer]
epochs = 2
[arms.random]
prune = "random"
p = 0.5
epoch = 1
[arms.mine]
prune = "mine.py:rule"
p = 0.5
epoch = 1
[compare]
mine = "random"
"""
RULE = """
def rule(scores, labels, p, seed, epoch):
    return scores.argsort()[round(p * len(scores)):]
"""


@pytest.fixture(autouse=True)
def file(tmp_path):
    studies.read.cache_clear()
    (tmp_path / "mine.py").write_text(RULE)
    (tmp_path / "idea.toml").write_text(STUDY)


def test_a_study_is_interrupted_once_and_ends_in_a_table_and_a_picture(monkeypatch, capsys):
    calls, main = [], evaluate.main

    def third(argv):
        calls.append(argv)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return main(argv)

    monkeypatch.setattr(evaluate, "main", third)
    with pytest.raises(KeyboardInterrupt):
        experiments.main(["study", "idea.toml"])
    before = {path: path.read_bytes() for path in Path("results/idea").glob("*.json")}
    assert len(before) == 2
    result = experiments.main(["study", "idea.toml"])
    assert len(list(Path("results/idea").glob("*.json"))) == 9
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(calls) == 3 + 7  # nothing is done twice
    records = {(arm, seed): json.loads(Path(f"results/idea/{arm}-{seed}.json").read_text())
               for arm in ("mine", "random") for seed in range(3)}
    differences = [records["mine", seed]["robust_accuracy"]
                   - records["random", seed]["robust_accuracy"] for seed in range(3)]
    low, high = stats.t.interval(0.95, 2, sum(differences) / 3, stats.sem(differences))
    table, figure = map(Path, result["written"])
    assert table.name == "idea.md" and figure.name == "idea.png"
    text = table.read_text()
    assert f"({low:+.3f} to {high:+.3f})" in text and "| fewer | 3 |" in text
    assert figure.stat().st_size > 5000
    assert "mine.py:rule" in records["mine", 0]["flags"]
    assert records["mine", 0]["prune"] == "mine.py:rule"  # no path of this machine


ONE = STUDY.replace("seeds = 3", "seeds = 1")


def again(text, *flags):
    """The command with this study in place of the one before."""
    Path("idea.toml").write_text(text)
    studies.read.cache_clear()
    return experiments.main(["study", "idea.toml", *flags])


def test_what_has_changed_is_not_taken_for_measured(capsys):
    labels = data.load("synthetic").labels.numpy()
    np.save("labels.npy", labels)
    noisy = ONE.replace("[arms.fewer]", 'labels = "labels.npy"\n[arms.fewer]')
    again(noisy)
    Path("mine.py").write_text(RULE.replace("round", "int"))
    assert "another --prune" in refused(again, noisy, capsys)
    Path("mine.py").write_text(RULE)
    np.save("labels.npy", 9 - labels)
    assert "another --labels" in refused(again, noisy, capsys)
    Path("labels.npy").unlink()  # then there is nothing to compare, and nothing to repeat
    again(noisy)
    np.save("labels.npy", labels)
    other = noisy.replace('"fgsm"', '"pgd-20"')
    assert "another attack (fgsm)" in refused(again, other, capsys)
    written = again(noisy.replace('"fgsm"', '"fgsm"\nalso = "pgd-20"\nalso_n = 20'))["written"]
    assert "| fgsm | pgd-20, 20 images |" in Path(written[0]).read_text()
    assert json.loads(Path("results/idea/mine-0.json").read_text())["pgd-20"]["n"] == 20


def test_another_network_is_not_taken_for_measured(capsys):
    own = ONE.replace("width = 2", 'model = "net.py:net"')
    network = """
from torch import nn

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))
"""
    Path("net.py").write_text(network)
    again(own)
    again(own)
    assert "nothing was run" in capsys.readouterr().err
    Path("net.py").write_text(network.replace("classes))", "classes, bias=False))"))
    assert "another --model" in refused(again, own, capsys)


def test_records_of_other_images_are_not_mixed(capsys):
    """A study goes on with the folder of images that it began with, and with no other."""
    write_images("ab", train=8, val=8, side=16)
    folder = ONE.replace('"synthetic"\nlimit = 100', '"folder"\nimage_size = 16\nbatch_size = 4')
    more = folder.replace("[compare]", "[arms.limited]\nlimit = 12\n[compare]")
    again(folder, "--data-dir", "images")
    shutil.copytree("images", "others")
    Path("others/train/b/3.png").unlink()
    assert "is of other data than" in refused(
        lambda text: again(text, "--data-dir", "others"), folder, capsys)
    assert "is of other data than" in refused(
        lambda text: again(text, "--data-dir", "others"), more, capsys)
    again(more, "--data-dir", "images")
    assert "4 runs, 3 of them have records" in capsys.readouterr().err


def test_settings_become_flags():
    assert studies.flags({"score_augmented": False, "flip": False, "skip_bad": True, "p": 0.5,
                          "mean": "0.5,0.25"}) == [
        "--no-score-augmented", "--skip-bad", "--p", "0.5", "--mean", "0.5,0.25"]
    _, a = config.parse(["--dataset", "cifar10", "--recipe", "authors", "--prune", "high",
                         *studies.flags({"score_augmented": False})])
    assert a.score_augmented is False


def test_more_images_than_there_are(capsys):
    """All are attacked, once. A part of fewer has no accuracy by class, which is of all."""
    many = ONE.replace("n = 50", "n = 5000")
    assert "worst class" in Path(again(many)["written"][0]).read_text()
    assert f"n = {len(data.load('synthetic').test_labels)}\n" in capsys.readouterr().out
    again(many)
    assert "nothing was run: 3 stored records" in capsys.readouterr().err
    assert "worst class" not in Path(again(ONE)["written"][0]).read_text()


def test_side_by_side():
    Path("idea.toml").write_text(STUDY.replace("seeds = 3", "seeds = 1\nfirst_seed = 7"))
    experiments.main(["study", "idea.toml", "--jobs", "2"])
    assert {path.stem for path in Path("results/idea").glob("*.json")} == {
        "fewer-7", "random-7", "mine-7"}


def test_parts_share_runs_and_have_seeds_and_images_of_their_own(capsys):
    Path("idea.toml").write_text(STUDY + """
[parts.quick]
arms = ["fewer", "random"]
seeds = 2
n = 5
[parts.more]
arms = ["random", "mine"]
seeds = 1
""")
    result = experiments.main(["study", "idea.toml"])
    assert [Path(path).name for path in result["written"]] == [
        "quick.md", "quick.png", "more.md", "more.png"]
    found = {path.stem: json.loads(path.read_text())["n"]
             for path in Path("results/idea").glob("*.json")}
    assert found == {"fewer-0": 5, "fewer-1": 5, "random-0": 50, "random-1": 5, "mine-0": 50}
    assert {arm: row["seeds"] for arm, row in result["summary"]["quick"].items()} == {
        "fewer": 2, "random": 2}
    assert "mine less random" in Path(result["written"][2]).read_text()
    assert "mine less random" not in Path(result["written"][0]).read_text()


@pytest.mark.parametrize(("change", "words"), [
    (("n = 50", "n ="), "is no TOML"), (("n = 50", ""), "has no n"),
    (("n = 50", 'n = "50"'), "n must be of type int"), (("n = 50", "m = 50"), "there is no 'm'"),
    (("epochs = 2", "epoch = 2"), "arm fewer: .*--epoch"),
    (("epochs = 2", "epocs = 2"), "arm fewer: 'epocs' is no setting"),
    (('"synthetic"', '"folder"\nlabels = "symmetric-0.4"'), "a CSV of path,class"),
    (('"mine.py:rule"', '["mine.py:rule"]'), "prune has one value, not a list"),
    (("limit = 100", "seed = 3"), "'seed' is no setting"),
    (("mine.py:rule", "gone.py:rule"), "arm mine: .*gone.py"),
    (('mine = "random"', 'mine = "other"'), "compare names 'other'"),
    (("[arms.fewer]", '[arms."a/b"]'), "not 'a/b'"),
    (("epochs = 2", "flip = false"), "'flip' is no setting"),
    (("limit = 100", "image-size = 8"), "train.py's flags with _ for -"),
    (("epochs = 2", "epochs = false"), "epochs = false: the recipe has it"),
    (("epochs = 2", 'prune = "high"\nscores = "{margins}"'), "of arm fewer names 'full'"),
    (("[compare]", "[parts]\nquick = 3\n[compare]"), "part quick must be a table"),
    (("[compare]", '[parts.quick]\narms = ["other"]\n[compare]'), "quick names 'other'"),
    (("[compare]", "[parts.quick]\nepochs = 3\n[compare]"), "part quick: there is no 'epochs'"),
    (("mine.py:rule", "mine.py:gone"), "no function or class 'gone'")])
def test_bad_files_are_one_sentence(change, words, capsys):
    Path("idea.toml").write_text(STUDY.replace(*change))
    said = refused(experiments.main, ["study", "idea.toml"], capsys)
    assert re.search(words, said), said
    assert not Path("runs").exists()


def test_holms_correction_by_hand():
    """p = .0095, .030 and .5 of three: 3 x .0095 and 2 x .030 are compared with .05."""
    def of(mean):
        return np.array([mean - 1, mean, mean + 1])  # t = mean sqrt(3)

    assert study.verdicts([of(-5.9), of(3.25), of(0.5)]) == [
        "worse", "no clear difference", "no clear difference"]
    assert study.verdicts([of(-5.9), of(3.25)][:1]) == ["worse"]
    assert study.verdicts([of(3.25)]) == ["better"]
    assert study.verdicts([of(3.25), np.array([1.0, 2.0])]) == ["better", ""]
    assert study.verdicts([np.zeros(3)]) == ["no clear difference"]


def test_no_file(capsys):
    assert "cannot be read" in refused(experiments.main, ["study", "gone.toml"], capsys)
