"""evaluate.py: records, ball and box, the same command again, --until, bad input."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAINED, ended, refused, shorter
from PIL import Image

import evaluate
import train
from advprune import attacks, data, evaluation, models, weights
from advprune.errors import UserError

KEYS = ["source", "dataset", "attack", "n", "epsilon", "clean_accuracy", "robust_accuracy",
        "robust_count", "per_attack", "seconds", "max_perturbation"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """AutoAttack of a twentieth of its steps, and PGD of 5 and 2 restarts: they take long."""

    def pgd(*args, **kwargs):
        return whole(*args, **{**kwargs, "steps": 5, "restarts": 2})

    whole = attacks.pgd
    monkeypatch.setattr(evaluation, "AutoAttack", shorter(20))
    monkeypatch.setattr(attacks, "pgd", pgd)


def test_record_and_pointwise_worst_case(trained):
    run = trained()
    record = evaluate.main([str(run), "--attack", "clean,fgsm,pgd,autoattack", "--n", "12"])
    assert list(record)[:len(KEYS)] == KEYS
    assert list(record["per_attack"]) == ["fgsm", "pgd-50-10", "apgd-ce", "apgd-t", "fab-t",
                                          "square"]
    counts = [attack["robust_count"] for attack in record["per_attack"].values()]
    assert counts == sorted(counts, reverse=True)
    assert record["robust_count"] == counts[-1] == round(record["robust_accuracy"] * 12)
    assert record["max_perturbation"] <= record["epsilon"] + 1e-6
    assert record["standard"] is True
    low, high = record["robust_interval"]
    assert low < record["robust_accuracy"] < high
    stored = json.loads((run / "eval-clean+fgsm+pgd+autoattack-12.json").read_text())
    assert stored["robust_count"] == record["robust_count"]
    assert stored["command"].startswith("python evaluate.py")


FAST = ["--attack", "fgsm", "--n", "40", "--batch-size", "20"]


def test_the_same_command_again_is_finished_and_others_are_refused(trained, monkeypatch, capsys):
    command = [str(trained()), *FAST, "--out", "x.json"]
    record = evaluate.main(command)
    monkeypatch.setattr(evaluate, "Evaluation", None)
    code, printed, said = ended(evaluate.main, command, capsys)
    assert (code, said) == (0, ["x.json is finished"])
    assert json.loads(printed.splitlines()[-1]) == record
    for other in (["--n", "41"], ["--epsilon", "0.05"], ["--seed", "1"], ["--attack", "clean"],
                  ["--batch-size", "10"], ["--until", "0.3"]):
        assert "x.json exists already" in refused(evaluate.main, [*command, *other], capsys)
    normal = [*command, "--mean", "none"]
    assert "--mean is for --weights" in refused(evaluate.main, normal, capsys)
    assert "x.json exists already" in refused(
        evaluate.main, [str(trained("--seed", "1")), *command[1:]], capsys)


def test_an_attack_that_leaves_the_ball_voids_the_result(trained, monkeypatch):
    monkeypatch.setattr(evaluation, "perturb", lambda attack, model, x, *_: (x + 0.5).clamp(0, 1))
    with pytest.raises(RuntimeError, match="left the ball"):
        evaluate.main([str(trained()), "--attack", "fgsm", "--n", "20", "--out", "void.json"])


def test_an_undefended_network_falls_and_later_attacks_find_nothing_to_do(trained):
    run = trained("--attack", "none")
    record = evaluate.main([str(run), "--attack", "pgd,autoattack", "--n", "20", "--epsilon", "1"])
    assert record["robust_accuracy"] == 0
    assert record["per_attack"]["square"] == {"attacked": 0, "broken": 0, "robust_count": 0}


@pytest.mark.parametrize("attack", ["clean", "pgd,autoattack"])
def test_weights_whose_logits_overflow_have_no_accuracy(trained, tmp_path, attack, capsys):
    state = weights.of_run(trained()).state_dict()
    torch.save({name: value * 1e30 for name, value in state.items()}, "huge.pth")
    flags = ["--weights", "huge.pth", "--dataset", "synthetic", "--attack", attack, "--n", "40"]
    assert "logits for 40 of the 40 test images" in refused(evaluate.main, flags, capsys)
    assert not list(tmp_path.rglob("*.json"))


SMALL = ["--dataset", "synthetic", "--limit", "100", "--epochs", "1", "--model"]
OWN = """
from torch import nn

class Probabilities(nn.Linear):
    def __init__(self, classes, size, **_):
        super().__init__(size * size, classes)

    def forward(self, x):
        return super().forward(x.flatten(1)).softmax(1)

class Failing(Probabilities):  # in eval mode, as batch norm whose statistics overflowed
    def forward(self, x):
        return super().forward(x) * (1 if self.training else float("inf"))
"""


def test_warnings_are_in_the_record(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    train.main([*SMALL, "own.py:Probabilities", "--out", "run"])
    capsys.readouterr()
    evaluate.main(["run", "--attack", "fgsm,pgd", "--n", "20", "--trust-code", "--out", "e.json"])
    said, stored = capsys.readouterr().err, json.loads(Path("e.json").read_text())["warnings"]
    assert [said.count(sentence) for sentence in stored] == [1]
    assert "leave out its softmax" in stored[0]


def test_a_network_that_fails_when_tested_is_an_error(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(UserError, match="logits for 500 of the 500 test images"):
        train.main([*SMALL, "own.py:Failing", "--out", "failing"])


def photos(classes):
    """CIFAR-10 in form: colour noise around a shade of each class."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(40) % classes
    x = (torch.rand(40, 3, 32, 32, generator=draw) + y.view(-1, 1, 1, 1)).mul(25).byte()
    return data.Dataset("cifar10", x[:0], y[:0], x, y, list(range(classes)), 0)


@pytest.fixture
def cifar(monkeypatch):
    """evaluate(*flags) on forty images in CIFAR-10's form."""
    monkeypatch.setattr(data, "load", lambda *_, **__: photos(10))
    return lambda *flags: evaluate.main(["--weights", "w.pth", "--dataset", "cifar10", "--attack",
                                         "clean", "--width", "2", *flags])


@pytest.mark.parametrize(("flags", "said"), [
    ([], "preactresnet18 (the shortcut takes x), normalisation: mean 0.4914, 0.4822, 0.4465 and "
         "std 0.2471, 0.2435, 0.2616"),
    (["--model", "preactresnet18-v2", "--mean", "none"],
     "preactresnet18-v2 (the shortcut takes relu(bn1(x))), normalisation: none"),
    (["--mean", "0.5,0.5,0.5", "--std", "1/2"], "normalisation: mean 0.5, 0.5, 0.5 and std 0.5"),
])
def test_what_a_weights_file_does_not_say_is_said(cifar, capsys, flags, said):
    torch.save(models.build("preactresnet18", 3, width=2, size=32).state_dict(), "w.pth")
    record = cifar(*flags)
    assert said in record["network"]
    out, err = capsys.readouterr()
    assert f"taken as {record['network']}\n" in out
    assert "is far below that of a trained network; check --model (preactresnet18 or " in err


def test_another_form_or_normalisation_is_another_evaluation(cifar, capsys):
    torch.save(models.build("preactresnet18", 3, width=2, size=32).state_dict(), "w.pth")
    cifar("--out", "x.json")
    for flags in (["--model", "preactresnet18-v2"], ["--mean", "0.5", "--std", "0.5"]):
        capsys.readouterr()
        with pytest.raises(UserError, match="x.json exists already and is not of this"):
            cifar("--out", "x.json", *flags)


@pytest.mark.parametrize(("flags", "words"), [
    (["--mean", "0.5"], "go together"), (["--std", "0.5"], "go together"),
    (["--mean", "none", "--std", "0.5"], "go together"), (["--mean", "125"], "at most 1"),
    (["--mean", "0.5", "--std", "0"], "above 0"), (["--mean", "0.5,x"], "'x' is not a number"),
    (["--mean", "0.5,0.5", "--std", "1"], "--mean has 2 values"),
])
def test_a_normalisation_that_makes_no_sense_is_refused(flags, words, tmp_path, capsys):
    torch.save(models.build("mnist-net", 1).state_dict(), "w.pth")
    assert words in refused(
        evaluate.main, ["--weights", "w.pth", "--dataset", "synthetic", *flags], capsys)
    assert words in refused(train.main, ["--dataset", "synthetic", *flags], capsys)
    assert not (tmp_path / "runs").exists()


def test_low_clean_accuracy_of_weights_is_said(trained, capsys):
    """Those of a network that learnt on other images, and those of one that learnt on these."""
    flags = ["--weights", str(trained("--epochs", "12") / "model.safetensors"), "--attack",
             "clean", "--n", "200", "--dataset"]
    for dataset in ("digits", "synthetic"):
        capsys.readouterr()
        record = evaluate.main([*flags, dataset, "--out", f"{dataset}.json"])
        said = f"clean accuracy {record['clean_accuracy']:.4f} is far below that of a trained"
        assert (said in capsys.readouterr().err) == (dataset == "digits")


def test_a_run_keeps_its_mean_and_std(cut_off):
    command = [*TRAINED, "--mean", "0.3", "--std", "0.2", "--out", "run"]
    with cut_off(1):
        train.main(command)
    train.main(command)
    assert models.normalisation(weights.of_run("run"))[0] == pytest.approx([0.3])
    plain = evaluate.main(["run", "--attack", "clean"])
    again = evaluate.main(["--weights", "run/model.safetensors", "--dataset", "synthetic",
                           "--attack", "clean", "--mean", "0.3", "--std", "0.2"])
    assert again["clean_accuracy"] == plain["clean_accuracy"] > 0.5


def test_weights_files_of_one_name_do_not_share_a_record(trained):
    files = [str(trained(*flags) / "model.safetensors") for flags in ([], ["--epochs", "12"])]
    for path in (*files, files[0]):
        evaluate.main(["--weights", path, "--dataset", "synthetic", "--attack", "clean"])
    assert {json.loads(path.read_text())["source"] for path in Path("runs").glob("*.json")} == {
        *files}


UNTIL = ["--attack", "fgsm,pgd", "--batch-size", "20", "--until"]


@pytest.mark.parametrize(("width", "n"), [("0.25", 60), ("0.1", 200)])
def test_until_judges_batches_until_the_interval_is_narrow(trained, width, n, capsys):
    run = trained()
    record = evaluate.main([str(run), *UNTIL, width, "--n", "200"])
    low, high = record["robust_interval"]
    assert record["until"] == float(width) and record["n"] == n
    assert (high - low < float(width)) == record["stopped_early"] == (n < 200)
    assert ("stopped early" in capsys.readouterr().out) == record["stopped_early"]
    whole = evaluate.main([str(run), *UNTIL[:-1], "--n", str(n), "--out", f"{width}.json"])
    same = ("n", "clean_accuracy", "robust_count", "robust_interval", "clean_interval")
    assert {name: record[name] for name in same} == {name: whole[name] for name in same}
    assert record["per_attack"] == whole["per_attack"] and "until" not in whole
    assert (run / f"eval-fgsm+pgd-200-until{width}.json").exists()
    if n > 20:  # a batch less was not enough
        less = evaluate.main([str(run), *UNTIL[:-1], "--n", str(n - 20), "--out", f"l{n}.json"])
        low, high = less["robust_interval"]
        assert high - low >= float(width)


@pytest.mark.parametrize(("until", "stop"), [(None, 1), (None, 4), ("0.25", 2), ("0.25", 3)])
def test_an_interrupted_evaluation_goes_on_and_agrees(trained, monkeypatch, capsys, until, stop):
    flags = [str(trained()), "--attack", "fgsm,pgd", "--batch-size", "20", "--save", "a.npz"]
    flags += ["--until", until, "--out"] if until else ["--n", "60", "--out"]
    batch, every, batches, later = evaluation.Evaluation.batch, [], [], []

    def counted(names):
        return lambda self, name, ids: names.append(name) or batch(self, name, ids)

    monkeypatch.setattr(evaluation.Evaluation, "batch", counted(every))
    whole = evaluate.main([*flags, "whole.json"])
    Path("a.npz").rename("whole.npz")

    def cut_off(self, name, ids):
        if len(batches) == stop:
            raise KeyboardInterrupt
        batches.append(name)
        batch(self, name, ids)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluation, "batch", cut_off)
        code, _, said = ended(evaluate.main, [*flags, "cut.json"], capsys)
    assert code == 130 and "the same command continues the evaluation" in said[-1]
    assert not Path("cut.json").exists()
    assert "cut.json was begun by another" in refused(
        evaluate.main, [*flags, "cut.json", "--seed", "1"], capsys)
    monkeypatch.setattr(evaluation.Evaluation, "batch", counted(later))
    resumed = evaluate.main([*flags, "cut.json"])
    other = {"seconds": 0, "command": ""}
    assert {**resumed, **other} == {**whole, **other}
    assert batches + later == every  # nothing is attacked twice
    with np.load("whole.npz") as expected, np.load("a.npz") as found:
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert not Path("cut.state").exists()


def test_the_images_are_saved_as_they_were_judged(trained):
    run = trained()
    record = evaluate.main([str(run), "--attack", "fgsm,pgd,apgd-ce", "--n", "40", "--save",
                            "a.npz", "--pictures", "a.png"])
    saved, dataset = dict(np.load("a.npz")), data.load("synthetic")
    assert saved.keys() == {"adversarial", "labels", "predicted", "robust"}
    adversarial, images = torch.from_numpy(saved["adversarial"]), dataset.test_images[:40] / 255
    assert adversarial.dtype == torch.float32
    assert np.array_equal(saved["labels"], dataset.test_labels[:40])
    assert np.array_equal(saved["predicted"], models.predict(weights.of_run(run), adversarial))
    right, robust = (np.array([*record[name]]) == "1" for name in ("right", "robust"))
    assert np.array_equal(saved["robust"], robust)
    assert np.array_equal(saved["predicted"] == saved["labels"], robust)
    distance = (adversarial - images).abs().flatten(1).amax(1).numpy()
    assert distance.max() <= record["epsilon"] + 1e-6
    # Where the image itself is wrong, that is saved. apgd-ce, which gives back what it does not
    # break, takes the place of none of the others' examples.
    assert np.array_equal(distance > 0, right)
    assert 0 < robust.sum() < right.sum() < 40
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("flags", "words"), [
    (["--save", "there.npz"], "there.npz exists already"),
    (["--pictures", "nodir/a.png"], "there is no folder nodir"),
    (["--save", "a.npz", "--pictures", "./a.npz"], "different names"),
    (["--save", "x.json"], "different names"), (["--save", "x.state"], "and not x.state"),
    (["--pictures", "a.png", "--attack", "clean"], "need an --attack")])
def test_files_of_images_are_new_and_need_an_attack(trained, flags, words, tmp_path, capsys):
    command, before = [str(trained()), "--attack", "fgsm", "--n", "9"], sorted(tmp_path.iterdir())
    (tmp_path / "there.npz").touch()
    assert words in refused(evaluate.main, [*command, "--out", "x.json", *flags], capsys)
    assert sorted(tmp_path.iterdir()) == [*before, tmp_path / "there.npz"]


def test_an_evaluation_with_images_is_finished_for_the_same_files_only(trained, capsys):
    command = [str(trained()), "--attack", "fgsm", "--n", "9", "--out", "x.json", "--save"]
    assert evaluate.main([*command, "a.npz"]) == evaluate.main([*command, "a.npz"])
    assert "x.json exists already" in refused(evaluate.main, [*command, "b.npz"], capsys)


@pytest.mark.parametrize("until", [None, "0.3"])
def test_accuracy_by_class_is_that_of_the_judged_images(trained, until, capsys):
    flags = [str(trained()), "--attack", "fgsm", "--batch-size", "40", "--out", "e.json"]
    record = evaluate.main([*flags, *(["--until", until] if until else ["--n", "60"])])
    labels, printed = data.load("synthetic").test_labels[:record["n"]], capsys.readouterr().out
    assert [int(row["class"]) for row in record["by_class"]] == labels.unique().tolist()
    for row in record["by_class"]:
        members = (labels == int(row["class"])).nonzero()[:, 0].tolist()
        for stood, name in (("right", "clean"), ("robust", "robust")):
            count = sum(record[stood][i] == "1" for i in members)
            assert row[f"{name}_accuracy"] == count / len(members)
            assert row[f"{name}_interval"] == evaluation.interval(count, len(members))
            low, high = row[f"{name}_interval"]
            assert f"{count / len(members):.4f} ({low:.4f} to {high:.4f})" in printed


@pytest.mark.parametrize("flags", [
    ["--n", "0"], ["--attack", "nosuch"], ["--epsilon", "-1"], ["--batch-size", "0"],
    *(["--until", width] for width in ("0", "1", "-0.1", "nan", "inf", "x")),
    ["--weights", "x.pth", "--dataset", "mnist"], ["--dataset", "mnist"],
])
def test_bad_flags(trained, capsys, flags):
    run = trained()
    before = sorted(run.rglob("*"))
    refused(evaluate.main, [str(run), *flags], capsys)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("content", ["pickle", "garbage"])
def test_bad_weights(content, tmp_path, capsys):
    if content == "pickle":
        torch.save({"model": print}, "w.pth")
    else:
        (tmp_path / "w.pth").write_bytes(b"\x00" * 100)
    before = sorted(tmp_path.rglob("*"))
    assert "w.pth" in refused(
        evaluate.main, ["--weights", "w.pth", "--dataset", "synthetic"], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def folder_of(root, classes):
    """A folder data set of this many classes: 12 + 6 images of each, of one grey value."""
    for part, count in (("train", 12), ("val", 6)):
        for c in range(classes):
            (root / part / f"class{c}").mkdir(parents=True)
            for i in range(count):
                shade = np.full((16, 16, 3), 40 + 180 * c // max(1, classes - 1) + i, np.uint8)
                Image.fromarray(shade).save(root / part / f"class{c}/{i}.png")


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_autoattack_says_whether_it_is_standard(tmp_path, capsys, classes):
    folder_of(tmp_path / "images", classes)
    train.main(["--dataset", "folder", "--data-dir", "images", "--image-size", "16", "--epochs",
                "8", "--epsilon", "0.01", "--model", "mnist-net", "--width", "4", "--batch-size",
                "12", "--optimizer", "adam", "--lr", "0.01", "--weight-decay", "0", "--out",
                "run"])
    assert json.loads((tmp_path / "run/train.json").read_text())["classes"] == [
        f"class{c}" for c in range(classes)]
    capsys.readouterr()
    record = evaluate.main(["run", "--attack", "autoattack", "--n", "18"])
    said = capsys.readouterr().out
    assert ("not AutoAttack standard" in said) == (classes < 4)
    assert record["standard"] == (classes == 4)
    written, = (tmp_path / "run").glob("eval-autoattack-*.json")
    assert json.loads(written.read_text())["standard"] == (classes == 4)
    if classes < 4:
        said = refused(evaluate.main, ["run", "--attack", "fgsm,apgd-t", "--n", "18"], capsys)
        assert f"apgd-t is not defined for {classes} classes" in said
    few = {2: ["apgd-ce"], 3: ["apgd-ce", "apgd-dlr"], 4: ["apgd-ce", "apgd-t"]}[classes]
    assert list(record["per_attack"]) == [*few, "fab-t", "square"]
    assert record["per_attack"]["apgd-ce"]["attacked"] > 0
