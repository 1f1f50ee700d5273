"""evaluate.py --export: a folder that others use without advprune."""
import io
import json
import re

import pytest
import safetensors.torch
import torch
from conftest import ROOT, ended, make, no_file_over, refused
from PIL import Image
from torch import nn

import advprune
import evaluate
import train
from advprune import data, export, layers, models
from advprune.errors import UserError

BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def network(name, channels=3, width=1, size=32, **normalisation):
    """(a model, what models.build took), with random statistics in its batch normalisation."""
    spec = dict(name=name, channels=channels, classes=10, width=width, size=size, mean=None,
                std=None, **normalisation)
    model = models.build(**spec)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.bias.data.normal_()
    return layers.plain(model).eval(), spec


NETWORKS = [("mnist-net", 1, 2, 28), ("preactresnet18", 3, 1, 16),
            ("wideresnet28-10-silu", 3, 1, 16), ("squeezenet1_1", 1, None, 32)]


@pytest.mark.parametrize("how", NETWORKS, ids=lambda how: how[0])
def test_the_program_and_the_weights_give_the_networks_logits(how):
    model, spec = network(*how)
    made = export.contents(model, spec, list("0123456789"))
    program = torch.export.load(io.BytesIO(made["model.pt2"]))
    assert str(ROOT).encode() not in made["model.pt2"] + made.get("model.onnx", b"")
    assert not [node for node in program.graph.nodes if "advprune" in str(node.target)]
    for n in (1, 5):
        images = torch.rand(n, spec["channels"], spec["size"], spec["size"])
        torch.testing.assert_close(program.module()(images), model(images))
    state = safetensors.torch.load(made["model.safetensors"])
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("how", NETWORKS, ids=lambda how: how[0])
def test_onnx_gives_the_networks_logits(how, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, spec = network(*how)
    made = export.contents(model, spec, list("0123456789"))
    (tmp_path / "model.onnx").write_bytes(made["model.onnx"])
    for n in (1, 5):
        images = torch.rand(n, spec["channels"], spec["size"], spec["size"])
        found = {"images": images}
        exec(BLOCK.findall(made["README.md"])[1], found)
        torch.testing.assert_close(torch.tensor(found["logits"]), model(images), rtol=1e-4,
                                   atol=1e-4)


@pytest.fixture
def folder_run(tmp_path):
    """A run on images of odd sizes and modes."""
    for i, image in enumerate(make(9, (29, 41), 3)[0]):
        place = tmp_path / "images" / ("val" if i < 3 else "train") / ("ant", "bee")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(image).resize((30 + 7 * i, 45)).convert(("RGB", "L", "P")[i % 3])
        turned = Image.Exif()
        turned[0x112] = 6
        image.save(place / f"{i}.png", exif=turned if i == 0 else None)
    train.main(["--dataset", "folder", "--data-dir", "images", "--image-size", "16",
                "--epochs", "1", "--width", "1", "--batch-size", "6", "--out", "run"])
    return "run"


def test_the_readme_classifies_files_as_the_run_does(folder_run, monkeypatch, tmp_path, capsys):
    record = evaluate.main([folder_run, "--export", "ship"])
    assert set(record["files"]) == {path.name for path in (tmp_path / "ship").iterdir()}
    dataset, model = data.load("folder", "images", image_size=16), advprune.load(folder_run)
    index = json.loads(next((tmp_path / "images").glob(".advprune-val-*.json")).read_text())
    monkeypatch.chdir("ship")
    code = BLOCK.findall((tmp_path / "ship/README.md").read_text())[0]
    for i, path in enumerate(index["paths"]):
        capsys.readouterr()
        found = {}
        exec(code.replace("image.png", str(tmp_path / "images/val" / path)), found)
        stored = dataset.test_images[torch.tensor([i])]
        assert torch.equal((found["images"] * 255).round().byte(), stored)
        logits = model(stored / 255)
        torch.testing.assert_close(found["logits"], logits)
        assert capsys.readouterr().out.strip() == ("ant", "bee")[logits.argmax()]


@pytest.mark.parametrize(("name", "width", "normalisation"), [
    ("preactresnet18-v2", 64, {"mu": [0.5] * 3, "sigma": [0.25, 0.2, 0.3]}),
    ("wideresnet28-10", 1, {})])
def test_robustbenchs_layout(name, width, normalisation):
    model, spec = network(name)
    models.normalise(model, (0.5,), (0.25, 0.2, 0.3))
    state = export.robustbench_state(model, {**spec, "width": width})
    assert [*state] == [*model.state_dict(), *normalisation]
    for key, values in normalisation.items():
        torch.testing.assert_close(state[key], torch.tensor(values).view(1, 3, 1, 1))


@pytest.mark.parametrize("name", export.PREACT + export.WIDE)
def test_robustbenchs_own_network_loads_it(name):
    pytest.importorskip("robustbench.model_zoo")
    model, spec = network(name, width=64 if name.startswith("preact") else 1)
    models.normalise(model, (0.5,), (0.25, 0.2, 0.3))
    torch.save(export.robustbench_state(model, spec), "robustbench.pt")
    found = {}
    exec(BLOCK.findall(export.readme(model, spec, 10, ["robustbench.pt"]))[1], found)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(found["network"](images), model(images))


@pytest.mark.parametrize("how", [("preactresnet18", 3, 16), ("preactresnet18", 1, 64),
                                 ("wideresnet28-10", 3, 1, 64), ("resnet18", 3, None)])
def test_other_networks_have_no_robustbench_file(how):
    assert export.robustbench_state(*network(*how)) is None


class Branch(nn.Linear):
    def forward(self, x):
        x = x.flatten(1)
        return super().forward(x if x.sum() > 0 else -x)


def test_a_network_that_torch_export_cannot_take_is_one_sentence():
    spec = dict(name="net.py:Branch", channels=1, classes=2, width=None, size=4)
    with pytest.raises(UserError, match=r"torch.export cannot take net.py:Branch .*advprune.load"):
        export.contents(Branch(16, 2), spec, ["a", "b"])


@pytest.mark.parametrize(("flags", "words"), [
    (["RUN", "--attack", "fgsm"], "--attack"), (["RUN", "--n", "5"], "--n"),
    (["--weights", "x.pth", "--dataset", "mnist"], "leave out"), (["nowhere"], "nowhere"),
    (["RUN", "--export", "there"], "exists already"),
    (["RUN", "--export", "no/ship"], "no folder")])
def test_what_is_refused_leaves_nothing(flags, words, trained, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    argv = ["--export", "ship", *(str(trained()) if word == "RUN" else word for word in flags)]
    assert words in refused(evaluate.main, argv, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_full_disk_leaves_nothing(trained, tmp_path, capsys):
    with no_file_over(10_000):
        code, _, said = ended(evaluate.main, [trained(), "--export", "ship"], capsys)
    assert code == 2 and "cannot be written" in said[-1]
    assert list(tmp_path.iterdir()) == []


def test_the_page_shows_the_readmes_code_and_its_own_runs(trained, tmp_path):
    page = (ROOT / "docs/ship.md").read_text()
    model, spec = network("preactresnet18", width=64)
    for code in BLOCK.findall(export.readme(model, spec, 10, ["model.onnx", "robustbench.pt"])):
        assert code in page
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/NAME").symlink_to(trained())
    exec(next(code for code in BLOCK.findall(page) if "advprune.load" in code))
    assert torch.load("weights.pth").keys() == advprune.load(trained()).state_dict().keys()
