"""--precision bf16."""
import copy

import pytest
import torch
from torch import nn

import train
from advprune import precision


@pytest.mark.parametrize("has", [True, False])
def test_a_run_in_bfloat16_trains_in_it_and_is_tested_in_float32(has, monkeypatch):
    seen, whole = [], torch.nn.Conv2d._conv_forward

    def forward(layer, x, *weights):
        out = whole(layer, x, *weights)
        if len(x) > 3:  # the trial of the network before has three images at most
            seen.append((layer.training, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", forward)
    monkeypatch.setattr(precision, "has_bf16", lambda: has)
    train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "1", "--precision", "bf16",
                "--model", "preactresnet18", "--width", "2"])
    assert {dtype for training, dtype in seen if training} == {torch.bfloat16}
    assert seen[-1] == (False, torch.float32)


def test_margins_are_in_float32_whatever_the_training_is_in(monkeypatch):
    """Also of a training in TF32, of which a machine without a GPU knows the switches alone."""
    def switches():
        cudnn = torch.backends.cudnn
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark

    precision.tf32(True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with torch.autocast("cpu", torch.bfloat16), precision.float32(torch.device("cpu")):
        assert switches() == ("highest", False, False)
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    assert switches() == ("high", True, True)
    precision.tf32(False)
    assert switches() == ("highest", False, True)


@pytest.mark.parametrize("layer, shape", [
    (nn.Conv2d(16, 32, 3, stride=2, padding=1), (8, 16, 32, 32)),
    (nn.Conv2d(16, 32, 3, padding=1, bias=False), (8, 16, 8, 8)), (nn.Linear(70, 50), (80, 70))])
def test_without_its_instructions_bfloat16_is_float64_rounded_once(layer, shape):
    x, exact = torch.randn(shape, requires_grad=True), copy.deepcopy(layer).bfloat16().double()
    with precision.Rounded():
        out = layer(x)
    grad = torch.randn(out.shape).bfloat16()
    wanted_x = x.detach().bfloat16().double().requires_grad_()
    wanted = exact(wanted_x)
    out.backward(grad)
    wanted.backward(grad.double())
    pairs = [(out, wanted), (x.grad, wanted_x.grad),
             *zip((w.grad for w in layer.parameters()), (w.grad for w in exact.parameters()),
                  strict=True)]
    for found, right in pairs:
        assert torch.equal(found, found.bfloat16().to(found.dtype))
        assert (found == right.bfloat16()).float().mean() > 0.99
    assert not torch.is_autocast_enabled("cpu")
