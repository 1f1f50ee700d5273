"""Attacks stay in ball and box and find what there is to find; records; resumption; bad input."""
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import advprune
import evaluate
import train
from advprune import attacks, data, evaluation, models, saved

KEYS = ["source", "dataset", "attack", "n", "epsilon", "clean_accuracy", "robust_accuracy",
        "robust_count", "per_attack", "seconds", "max_perturbation"]


def linear_model():
    """Two classes apart along one known direction, so that every attack's optimum is known."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2, bias=False))
    weight = torch.linspace(-1, 1, 16)
    model[1].weight.data = torch.stack([weight, -weight])
    return model, 2 * weight


@pytest.mark.parametrize("eps", [0.1, torch.tensor([0.02, 0.1, 0.3] * 10)])
def test_pgd_stays_in_ball_and_box_and_reaches_the_corner(eps):
    model, gap = linear_model()
    x, y = torch.rand(30, 1, 4, 4), torch.zeros(30, dtype=torch.long)
    adv = attacks.pgd(model, x, y, torch.arange(30), eps=eps, alpha=0.05, steps=20, restarts=2)
    radius = torch.as_tensor(eps).expand(30).view(30, 1, 1, 1)
    assert ((adv - x).abs() <= radius + 1e-6).all()
    assert adv.min() >= 0
    assert adv.max() <= 1
    corner = (x - radius * gap.sign().view(4, 4)).clamp(0, 1)  # the exact worst case
    lost = model(corner).argmax(1) != y
    assert torch.equal(model(adv).argmax(1) != y, lost)
    whole = ~lost
    torch.testing.assert_close(adv[whole], corner[whole])


def test_fgsm_is_one_full_step():
    model, gap = linear_model()
    x, y = torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.long)
    adv = evaluation.perturb("fgsm", model, x, y, torch.arange(8), 0.07, None, 0)
    torch.testing.assert_close(adv, (x - 0.07 * gap.sign().view(4, 4)).clamp(0, 1))


def test_wilson_interval_against_published_values():
    for counts, published in {(81, 263): [0.2553, 0.3662], (0, 20): [0, 0.1611],
                              (29, 29): [0.8830, 1]}.items():  # Newcombe 1998
        assert evaluation.interval(*counts) == pytest.approx(published, abs=5e-5)


def test_record_and_pointwise_worst_case(trained, capsys):
    run = trained()
    record = evaluate.main([str(run), "--attack", "clean,fgsm,pgd,autoattack", "--n", "12"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
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


def test_interrupted_evaluation_goes_on_and_agrees(trained, monkeypatch, tmp_path):
    flags = [str(trained()), "--attack", "fgsm,pgd", "--n", "40", "--batch-size", "10", "--out"]
    whole = evaluate.main([*flags, "whole.json"])
    batch, batches = evaluate.Evaluation.batch, []

    def cut_off(self, name, ids):
        if len(batches) == 5:
            raise KeyboardInterrupt
        batches.append(name)
        return batch(self, name, ids)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.Evaluation, "batch", cut_off)
        with pytest.raises(SystemExit):
            evaluate.main([*flags, "cut.json"])
    assert not (tmp_path / "cut.json").exists()
    batches.clear()
    monkeypatch.setattr(evaluate.Evaluation, "batch",
                        lambda self, name, ids: batches.append(name) or batch(self, name, ids))
    resumed = evaluate.main([*flags, "cut.json"])
    assert "fgsm" not in batches
    assert resumed["per_attack"] == whole["per_attack"]
    assert not (tmp_path / "cut.state").exists()


def test_an_attack_that_leaves_the_ball_voids_the_result(trained, monkeypatch):
    monkeypatch.setattr(evaluation, "perturb", lambda attack, model, x, *_: (x + 0.5).clamp(0, 1))
    with pytest.raises(RuntimeError, match="left the ball"):
        evaluate.main([str(trained()), "--attack", "fgsm", "--n", "20", "--out", "void.json"])


def test_an_undefended_network_falls_and_later_attacks_find_nothing_to_do(trained):
    run = trained("--attack", "none")
    record = evaluate.main([str(run), "--attack", "pgd,autoattack", "--n", "20", "--epsilon", "1"])
    assert record["robust_accuracy"] == 0
    assert record["per_attack"]["square"] == {"attacked": 0, "broken": 0, "robust_count": 0}


def test_weights_of_other_tools_load(trained, tmp_path):
    run = trained()
    config = json.loads((run / "config.json").read_text())
    model = saved.from_run(run, config)
    expected = evaluate.main([str(run), "--attack", "clean", "--out", "a.json"])
    assert expected["n"] == 500
    plain = model.state_dict()
    forms = {"plain.pth": plain, "half.pth": {k: v.half() for k, v in plain.items()},
             "wrapped.pt": {"state_dict": {f"module.{k}": v for k, v in plain.items()}}}
    for name, content in forms.items():
        torch.save(content, name)
    plain = advprune.load(run).state_dict()
    safetensors.torch.save_file(plain, "plain.safetensors")
    for name in [*forms, "plain.safetensors"]:
        record = evaluate.main(["--weights", name, "--dataset", "synthetic", "--attack", "clean"])
        assert record["clean_accuracy"] == pytest.approx(expected["clean_accuracy"], abs=0.01)


def test_published_layer_names():
    mnist = models.build("mnist-net", 1).state_dict()
    assert {name.split(".")[0] for name in mnist} == {"0", "2", "5", "7"}
    assert sum(p.numel() for p in mnist.values()) == 166406
    cifar = models.build("preactresnet18", 3, size=32).state_dict()
    assert {name.split(".")[0] for name in cifar} == {
        "conv1", "layer1", "layer2", "layer3", "layer4", "bn", "linear"}
    assert cifar["layer2.0.shortcut.0.weight"].shape == (128, 64, 1, 1)
    wide = models.build("wideresnet28-10-silu", 3, width=1, size=32).state_dict()
    assert {"init_conv.weight", "layer.0.block.0.conv_0.weight", "layer.1.block.0.shortcut.weight",
            "layer.2.block.3.batchnorm_1.running_var", "batchnorm.weight",
            "logits.bias"} <= set(wide)


def test_networks_normalise_cifar_as_published():
    model = models.build("preactresnet18", 3, width=2, size=32)
    mean = torch.tensor(models.CIFAR10_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert model.normalize(mean).abs().max() < 1e-6
    assert model.normalize(mean + torch.tensor(models.CIFAR10_STD).view(3, 1, 1)).mean() == 1


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


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_an_interrupted_until_goes_on_and_agrees(trained, monkeypatch, tmp_path, stop):
    flags = [str(trained()), *UNTIL, "0.25", "--out"]
    whole, batches = evaluate.main([*flags, "whole.json"]), []
    batch = evaluation.Evaluation.batch

    def cut_off(self, name, ids):
        if len(batches) == stop:
            raise KeyboardInterrupt
        batches.append(name)
        batch(self, name, ids)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(evaluation.Evaluation, "batch", cut_off)
        evaluate.main([*flags, "cut.json"])
    assert batches == ["fgsm", "pgd-50-10", "fgsm", "pgd-50-10", "fgsm"][:stop]
    later = []
    monkeypatch.setattr(evaluation.Evaluation, "batch",
                        lambda self, name, ids: later.append(name) or batch(self, name, ids))
    resumed = evaluate.main([*flags, "cut.json"])
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert len(batches) + len(later) == 2 * whole["n"] / 20  # nothing is attacked twice


def test_other_widths_are_other_evaluations(trained, capsys):
    run, flags = trained(), ["--attack", "fgsm", "--batch-size", "20", "--n", "80"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(evaluation.Evaluation, "attack", lambda *_: (_ for _ in ()).throw(
            KeyboardInterrupt))
        evaluate.main([str(run), *flags, "--until", "0.25", "--out", "x.json"])
    capsys.readouterr()
    for other in ([], ["--until", "0.3"]):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([str(run), *flags, *other, "--out", "x.json"])
        assert stopped.value.code == 2 and "belongs to other settings" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [
    ["--n", "0"], ["--attack", "nosuch"], ["--epsilon", "-1"], ["--batch-size", "0"],
    *(["--until", width] for width in ("0", "1", "-0.1", "nan", "inf", "x")),
    ["--weights", "x.pth", "--dataset", "mnist"], ["--dataset", "mnist"],
])
def test_bad_flags(trained, capsys, flags):
    run = trained()
    before = sorted(run.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(run), *flags])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("content", ["other network", "pickle", "garbage", "list", None])
def test_bad_weights(content, tmp_path, capsys):
    if content == "other network":
        torch.save(models.build("preactresnet18", 1, width=2).state_dict(), "w.pth")
    elif content == "pickle":
        torch.save({"model": print}, "w.pth")
    elif content == "garbage":
        (tmp_path / "w.pth").write_bytes(b"\x00" * 100)
    elif content == "list":
        torch.save([torch.zeros(2)], "w.pth")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--weights", "w.pth", "--dataset", "synthetic"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert "w.pth" in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_autoattack_of_few_classes():
    model, _ = linear_model()
    x, y = torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.long)
    for name in ("apgd-t", "fab-t"):
        wide = torch.nn.Sequential(model, torch.nn.Linear(2, 4)).eval().requires_grad_(False)
        y = wide(x).argmax(1)
        adv = evaluation.perturb(name, wide, x, y, torch.arange(6), 0.3, None, 0)
        assert (adv - x).abs().max() <= 0.3 + 1e-6


def test_digits_are_embedded():
    digits = data.load("digits")
    assert digits.images.shape == (1438, 1, 28, 28)
    assert digits.test_images.shape == (359, 1, 28, 28)
    assert digits.images.dtype == torch.uint8
    assert digits.images.max() == 255
    assert digits.labels.bincount().min() > 100


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
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            evaluate.main(["run", "--attack", "fgsm,apgd-t", "--n", "18"])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert f"apgd-t is not defined for {classes} classes" in said and said.count("\n") == 1
    few = {2: ["apgd-ce"], 3: ["apgd-ce", "apgd-dlr"], 4: ["apgd-ce", "apgd-t"]}[classes]
    assert list(record["per_attack"]) == [*few, "fab-t", "square"]
    assert record["per_attack"]["apgd-ce"]["attacked"] > 0
