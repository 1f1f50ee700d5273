"""Networks by name: published layers and weights, other numbers of classes, grey images."""
import pytest
import torch
import torchvision
from conftest import refused, weights
from torchvision import transforms

import train
from advprune import models
from advprune import weights as stored_weights
from advprune.errors import UserError

NAME = "shufflenet_v2_x0_5"  # torchvision's smallest
FLAGS = ["--dataset", "synthetic", "--limit", "64", "--epochs", "1", "--model", NAME]


@pytest.fixture
def published(tmp_path):
    """published(classes): the content of theirs.pth, weights as torchvision publishes them."""

    def make(classes):
        state = torchvision.models.get_model(NAME, num_classes=classes).state_dict()
        torch.save(state, tmp_path / "theirs.pth")
        return state

    return make


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


@pytest.mark.parametrize(("name", "active"), [("preactresnet18", False),
                                              ("preactresnet18-v2", True)])
def test_the_shortcut_of_either_preactresnet18(name, active):
    """Against the equations; the weights of both have the same names and shapes."""
    model = models.build(name, 3, width=4, size=32)
    for layer in model.modules():  # so that bn1 and ReLU do change x
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    model.eval()
    x = torch.rand(2, 3, 32, 32)
    out = model.conv1(model.normalize(x))
    for block in (b for group in (model.layer1, model.layer2, model.layer3, model.layer4)
                  for b in group):
        a = block.bn1(out).relu()
        rest = out
        if isinstance(block.shortcut, torch.nn.Sequential):
            rest = block.shortcut(a if active else out)
        out = block.conv2(block.bn2(block.conv1(a)).relu()) + rest
    wanted = model.linear(model.bn(out).relu().mean((2, 3)))
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    other = models.build("preactresnet18", 3, width=4, size=32).state_dict()
    assert shapes == {key: value.shape for key, value in other.items()}


NETWORKS = [("mnist-net", 1), ("mnist-net", 3), ("preactresnet18", 3), ("preactresnet18", 1),
            ("wideresnet28-10", 3), (NAME, 3), (NAME, 1)]


def built(name, channels, **how):
    torch.manual_seed(0)
    width = 1 if name in models.MODELS else None
    return models.build(name, channels, width=width, size=32, **how).eval()


@pytest.mark.parametrize(("name", "channels"), NETWORKS)
def test_mean_and_std_replace_the_normalisation_of_any_network(name, channels):
    x = torch.rand(2, channels, 32, 32)
    plain = built(name, channels, mean=[0.0], std=[1.0])
    for mean, std in (([0.3], [0.6]), ([0.3] * channels, [0.6] * channels)):
        model = built(name, channels, mean=mean, std=std)
        assert model.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(model(x), plain((x - 0.3) / 0.6), rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="--mean has 2 values"):
        built(name, channels, mean=[0.3] * 2, std=[0.6])


@pytest.mark.parametrize(("name", "channels"), [
    *NETWORKS, ("mobilenet_v3_small", 3)])  # the last one has dropout
def test_trying_a_network_changes_no_weight_no_statistic_and_no_random_number(
        name, channels, monkeypatch):
    tried = built(name, channels).state_dict()
    after = torch.rand(3)
    monkeypatch.setattr(models, "_try", lambda *_: None)
    untried = built(name, channels).state_dict()
    assert all(torch.equal(value, untried[key]) for key, value in tried.items())
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize("name", [NAME, "resnet18"])
def test_torchvisions_weights_load_and_give_its_logits(tmp_path, name):
    theirs = torchvision.models.get_model(name, num_classes=7).eval()
    state = {key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}},
               tmp_path / "new.pth")
    x = torch.rand(2, 3, 64, 64)
    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for file in ("old.pth", "new.pth"):
        ours = models.build(name, 3, 7, size=64).eval()
        stored_weights.load(ours, tmp_path / file)
        torch.testing.assert_close(ours(x), theirs(normal(x)), rtol=1e-4, atol=1e-4)
    assert models.build(name, 1, 7)(x[:, :1]).shape == (2, 7)


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_run_starts_from_published_weights(published, monkeypatch, capsys, classes):
    state, seen = published(classes), []

    def epoch(training, *_):  # before any update
        seen.append(training.model.state_dict())
        raise ZeroDivisionError

    monkeypatch.setattr(train.Training, "epoch", epoch)
    with pytest.raises(ZeroDivisionError):
        train.main([*FLAGS, "--pretrained", "theirs.pth", "--out", "run"])
    ours, err = seen[0], capsys.readouterr().err
    assert all(torch.equal(ours[name], value) for name, value in state.items()
               if not name.startswith("fc."))
    assert ours["fc.weight"].shape == (10, 1024)
    assert torch.equal(ours["fc.weight"], state["fc.weight"]) == (classes == 10)
    assert ("fc.weight, fc.bias keep random values" in err) == (classes == 1000)


def test_a_pretrained_run_trains_on_grey_images_and_is_used(published):
    published(1000)
    train.main([*FLAGS, "--pretrained", "theirs.pth", "--out", "run"])
    assert weights("run")["fc.weight"].shape == (10, 1024)
    x = torch.rand(2, 1, 28, 28)
    model = stored_weights.of_run("run").eval()
    torch.testing.assert_close(model(x), model(x.expand(-1, 3, -1, -1)))  # grey is three equals


@pytest.mark.parametrize(("flags", "word"), [
    (["--width", "4"], "--width"), (["--model", "resnet19"], "'resnet19'"),
    (["--model", "googlenet"], "'googlenet'"), (["--model", "alexnet"], "1x28x28"),
    (["--pretrained", "absent.pth"], "absent.pth"),
    (["--model", "mnist-net", "--pretrained", "theirs.pth"], "does not fit"),
    (["--model", "shufflenet_v2_x1_0", "--pretrained", "theirs.pth"], "does not fit"),
])
def test_unfit_names_and_weights_are_one_sentence(published, tmp_path, capsys, flags, word):
    published(1000)
    before = sorted(tmp_path.rglob("*"))
    assert word in refused(train.main, [*FLAGS, *flags], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_last_layer_may_have_another_shape(published):
    published(1000)
    model = models.build(NAME, 3, 7)
    with pytest.raises(UserError, match="does not fit"):
        stored_weights.load(model, "theirs.pth")
    published(7)  # the last layer fits, and the first does not
    model.conv1[0] = torch.nn.Conv2d(1, 24, 3, bias=False)
    with pytest.raises(UserError, match="does not fit"):
        stored_weights.load(model, "theirs.pth", new_head=True)
