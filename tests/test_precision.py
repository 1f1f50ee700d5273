"""bfloat16 on a CPU without its instructions: the numbers are those of a CPU that has them."""
import pytest
import torch
import torch.nn.functional as F

import train
from advprune import precision
from advprune.precision import Autocast, Rounded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def lacks(monkeypatch):
    """For the test, this machine lacks the instructions; the function says otherwise."""
    def said(lacks):
        monkeypatch.setattr(precision, "has_bf16", lambda device: not lacks)
    said(True)
    return said


def product(kind, rows, filters, bias):
    return (F.linear(rows.flatten(1), filters.flatten(1), bias) if kind == "linear"
            else F.conv2d(rows, weight=filters, bias=bias, stride=2, padding=1))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_products_are_the_exact_ones_rounded(kind):
    """Against float64: of the rounded factors, rounded once."""
    torch.manual_seed(0)
    factors = torch.randn(6, 3, 5, 5), torch.randn(4, 3, 5, 5), torch.randn(4)
    single = [t.clone().requires_grad_() for t in factors]
    double = [t.bfloat16().double().requires_grad_() for t in factors]
    with Autocast(CPU, "bf16"):
        found = product(kind, *single)
    exact = product(kind, *double)
    assert found.dtype == torch.bfloat16
    close = dict(rtol=2**-8, atol=1e-5)  # half of a unit in the last place of bfloat16
    torch.testing.assert_close(found.double(), exact, **close)
    weights = torch.randn_like(found)
    found.backward(weights)
    exact.backward(weights.double())
    for a, b in zip(single, double, strict=True):
        assert a.grad.dtype == torch.float32
        if a.dim() > 1:  # a bias is summed in float32 or in bfloat16
            torch.testing.assert_close(a.grad.double(), b.grad, **close)


@pytest.mark.parametrize("lack", [True, False])
def test_it_rounds_where_autocast_does_and_nowhere_else(lack, lacks):
    lacks(lack)
    context, x, weight = Autocast(CPU, "bf16"), torch.randn(2, 3), torch.randn(4, 3)
    assert isinstance(context.rounded, Rounded) == lack
    for _ in range(2):
        with context:
            assert F.linear(x, weight).dtype == torch.bfloat16
            with torch.autocast("cpu", enabled=False):
                assert torch.equal(F.linear(x, weight), x @ weight.t())
        assert torch.equal(F.linear(x, weight), x @ weight.t())
    with Autocast(CPU, "fp32"):
        assert torch.equal(F.linear(x, weight), x @ weight.t())
    with pytest.raises(KeyError), context:
        raise KeyError
    assert torch.equal(F.linear(x, weight), x @ weight.t())


def test_a_run_in_bfloat16_rounds_every_convolution(monkeypatch):
    seen, whole = set(), torch.nn.Conv2d._conv_forward

    def forward(layer, x, *weights):
        out = whole(layer, x, *weights)
        seen.add((torch.overrides._get_current_function_mode() is not None, out.dtype))
        return out

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", forward)
    train.main(["--dataset", "synthetic", "--limit", "40", "--epochs", "1", "--precision", "bf16",
                "--model", "preactresnet18", "--width", "2", "--out", "run"])
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}  # it is tested in float32
