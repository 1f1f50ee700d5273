"""Weights as others publish them: under any key, any prefix, a normalisation of theirs."""
import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import train
from advprune import models, weights
from advprune.errors import UserError


@pytest.fixture
def theirs():
    """A state dict that fits `models.build("mnist-net", 1, width=2)`."""
    return models.build("mnist-net", 1, width=2).state_dict()


def loaded(content, **network):
    """The state dict of a network that loaded this content from a file."""
    torch.save(content, "w.pth")
    model = models.build(**{"name": "mnist-net", "channels": 1, "width": 2, **network})
    return weights.load(model, "w.pth").state_dict()


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize("wrap", [
    lambda state: {"net": state, "acc": 94.2, "epoch": 199},
    lambda state: {"ema": state, "optimizer": OPTIMIZER},
    lambda state: {"my weights": state, "args": {"lr": 0.1}},
    lambda state: {"model": {"state_dict": state, "arch": "x"}, "optimizer": OPTIMIZER},
    lambda state: {"state_dict": state, "ema_state_dict": {k: 0 * v for k, v in state.items()}},
], ids=["net", "ema", "any", "two levels", "several"])
def test_weights_under_any_key(theirs, wrap):
    assert same(loaded(wrap(theirs)), theirs)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.0.", "1.",
                                    "module._orig_mod.net.", "0."])
def test_names_with_a_common_prefix(theirs, prefix):
    assert same(loaded({prefix + name: value for name, value in theirs.items()}), theirs)


def test_half_precision(theirs):
    halved = {name: value.half() for name, value in theirs.items()}
    assert same(loaded(halved), {name: value.float() for name, value in halved.items()})


def test_torchs_averaged_model():
    model = models.build("mnist-net", 1, width=2)
    assert same(loaded({"ema": AveragedModel(model).state_dict()}), model.state_dict())


def test_of_several_known_keys_the_one_in_use_is_said(theirs, capsys):
    zeros = {name: 0 * value for name, value in theirs.items()}
    assert same(loaded({"ema": zeros, "net": theirs, "optimizer": OPTIMIZER}), theirs)
    assert "w.pth holds several state dicts, ema, net; net is used" in capsys.readouterr().err
    loaded({"net": theirs, "optimizer": OPTIMIZER})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("other", [
    lambda value: value.to(torch.int8), lambda value: value.to(torch.float8_e4m3fn),
    lambda value: value.to(torch.complex64), torch.Tensor.to_sparse,
    lambda value: value.to("meta"),
    lambda value: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8)],
    ids=["int8", "float8", "complex", "sparse", "meta", "quantised"])
@pytest.mark.filterwarnings("ignore")
def test_values_that_are_no_plain_numbers_are_refused(theirs, other):
    with pytest.raises(UserError, match="1 tensors that are no plain numbers.*'5.weight'"):
        loaded({**theirs, "5.weight": other(theirs["5.weight"])})


def test_several_unknown_keys_are_listed(theirs):
    with pytest.raises(UserError, match="several state dicts, teacher, student;"):
        loaded({"teacher": theirs, "student": theirs})


@pytest.mark.parametrize("content", [
    nn.Linear(2, 2), {"state_dict": {}, "acc": np.float64(0.9)},
    {"state_dict": {}, "args": argparse.Namespace(lr=0.1)},
    {}, [], {"epoch": 3}, (3, {"a": 1})], ids=lambda content: str(content)[:20])
def test_a_file_that_is_no_state_dict_is_one_sentence_that_says_how_to_save(content):
    with pytest.raises(UserError, match=r"torch\.save\(model\.state_dict\(\), FILE\)"):
        loaded(content)


@pytest.mark.parametrize("flags", [
    ["--pretrained", "w.pth"], ["--prune", "puma", "--score-model", "w.pth"]])
def test_training_says_how_it_took_a_weights_file(flags, capsys):
    torch.save(models.build("preactresnet18-v2", 1, width=2).state_dict(), "w.pth")
    train.main(["--dataset", "synthetic", "--limit", "20", "--epochs", "1", "--model",
                "preactresnet18-v2", "--width", "2", "--out", "run", *flags])
    assert ("w.pth is taken as preactresnet18-v2 (the shortcut takes relu(bn1(x))), "
            "normalisation: none") in capsys.readouterr().err


# --- normalisation

CIFAR = dict(name="preactresnet18", channels=3, size=32)
BUILT_IN = {"mean": torch.tensor(models.CIFAR10_MEAN).view(1, 3, 1, 1),
            "std": torch.tensor(models.CIFAR10_STD).view(3, 1, 1)}
HALF = {"mean": torch.full((3,), 0.5), "std": torch.tensor(0.5)}
NAMES = [lambda name: name, {"mean": "mu", "std": "sigma"}.get, "normalize.{}".format,
         "0.{}".format, "module.0.{}".format]


@pytest.mark.parametrize("named", NAMES, ids=["mean", "mu", "normalize", "0", "module.0"])
def test_a_files_normalisation_must_be_the_networks(named):
    wanted = models.build(**CIFAR, width=2).state_dict()
    inside = {"0.{}": "1.", "module.0.{}": "module.1."}.get(named("{}"), "")
    state = {inside + name: value for name, value in wanted.items()}

    def file(values, dtype=torch.float32):
        return {**state, **{named(name): value.to(dtype) for name, value in values.items()}}

    for dtype in (torch.float32, torch.float16):
        assert same(loaded(file(BUILT_IN, dtype), **CIFAR), wanted)
    with pytest.raises(UserError, match=r"mean 0.5, 0.5, 0.5 and std 0.5, and this network mean "
                                        r"0.4914, 0.4822, 0.4465 and std 0.2471, 0.2435, 0.2616"):
        loaded(file(HALF), **CIFAR)
    with pytest.raises(UserError, match="and this network none"):
        loaded(file(HALF), **CIFAR, mean=[0.0], std=[1.0])
    assert same(loaded(file(HALF), **CIFAR, mean=[0.5], std=[0.5] * 3), wanted)


@pytest.mark.parametrize("beside", [
    HALF, {"mean": [0.5, 0.5, 0.5], "std": (0.5,)}, {"normalize": HALF},
    {"args": {"mean": [0.5], "std": [0.5], "lr": 0.1}}],
    ids=["tensors", "lists", "a state dict", "arguments"])
def test_a_normalisation_beside_the_state_dict_counts_too(beside):
    wanted = models.build(**CIFAR, width=2).state_dict()
    with pytest.raises(UserError, match="has the normalisation mean 0.5"):
        loaded({"net": wanted, "epoch": 3, **beside}, **CIFAR)
    assert same(loaded({"net": wanted, **beside}, **CIFAR, mean=[0.5], std=[0.5]), wanted)


def test_an_own_networks_tensors_of_these_names_are_loaded(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, classes):\n        super().__init__()\n"
        "        self.linear = nn.Linear(784, classes)\n"
        "        self.register_buffer('mean', torch.zeros(1))\n\n    def forward(self, x):\n"
        "        return self.linear((x - self.mean).flatten(1))\n")
    network = dict(name="net.py:Net", channels=1, width=None)
    state = {**models.build(**network).state_dict(), "mean": torch.ones(1)}
    assert same(loaded({f"module.{name}": value for name, value in state.items()}, **network),
                state)
    save_file(state, "w.safetensors")
    assert same(weights.load(models.build(**network), "w.safetensors").state_dict(), state)
