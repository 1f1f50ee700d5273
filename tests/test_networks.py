"""torchvision's networks by name: pretrained weights, other numbers of classes, grey images."""
import pytest
import torch
import torchvision
from conftest import refused, weights

import train
from advprune import cli, models

FLAGS = ["--dataset", "synthetic", "--limit", "64", "--epochs", "1", "--model", "resnet18"]


@pytest.fixture
def published(monkeypatch, tmp_path):
    """published(classes): a file of weights as torchvision publishes them, and its content."""

    def make(classes, name="resnet18"):
        state = torchvision.models.get_model(name, num_classes=classes).state_dict()
        torch.save(state, tmp_path / "theirs.pth")
        return state

    return make


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_run_starts_from_published_weights(published, monkeypatch, capsys, classes):
    state = published(classes)
    monkeypatch.setattr(train.Training, "epoch", lambda training, *_: 1 / 0)  # before any update
    seen = []
    monkeypatch.setattr(train.models, "load_weights", lambda model, *args, inner=(
        models.load_weights), **kwargs: seen.append(inner(model, *args, **kwargs)))
    with pytest.raises(ZeroDivisionError):
        train.main([*FLAGS, "--pretrained", "theirs.pth", "--out", "run"])
    ours, err = seen[0].state_dict(), capsys.readouterr().err
    assert all(torch.equal(ours[name], value) for name, value in state.items()
               if not name.startswith("fc."))
    assert ours["fc.weight"].shape == (10, 512)
    assert torch.equal(ours["fc.weight"], state["fc.weight"]) == (classes == 10)
    assert ("fc.weight, fc.bias keep random values" in err) == (classes == 1000)


def test_a_pretrained_run_trains_on_grey_images_and_is_used(published):
    published(1000)
    train.main([*FLAGS, "--pretrained", "theirs.pth", "--out", "run"])
    assert weights("run")["fc.weight"].shape == (10, 512)
    x = torch.rand(2, 1, 28, 28)
    model = models.build("resnet18", 1)
    models.load_weights(model, "run/model.safetensors").eval()
    torch.testing.assert_close(model(x), model(x.expand(-1, 3, -1, -1)))  # grey is three equals


@pytest.mark.parametrize(("flags", "word"), [
    (["--width", "4"], "--width"), (["--model", "resnet19"], "'resnet19'"),
    (["--model", "googlenet"], "'googlenet'"), (["--model", "alexnet"], "1x28x28"),
    (["--pretrained", "absent.pth"], "absent.pth"),
    (["--model", "mnist-net", "--pretrained", "theirs.pth"], "does not fit"),
    (["--model", "resnet34", "--pretrained", "theirs.pth"], "does not fit"),
])
def test_unfit_names_and_weights_are_one_sentence(published, tmp_path, capsys, flags, word):
    published(1000)
    before = sorted(tmp_path.rglob("*"))
    assert word in refused(train.main, [*FLAGS, *flags], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_last_layer_may_have_another_shape(published):
    published(1000)
    model = models.build("resnet18", 3, 7)
    with pytest.raises(cli.UserError, match="does not fit"):
        models.load_weights(model, "theirs.pth")
    published(7)  # the last layer fits, and the first does not
    model.conv1 = torch.nn.Conv2d(1, 64, 7, bias=False)
    with pytest.raises(cli.UserError, match="does not fit"):
        models.load_weights(model, "theirs.pth", new_head=True)
