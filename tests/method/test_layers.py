"""The fast layers: the same function and gradients as PyTorch's own."""
import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import advprune
from advprune import attacks, layers, models, ops, reference

BUILT = pytest.mark.skipif("cpu" not in ops.KERNELS, reason="no kernels were built")


@pytest.mark.parametrize("operator", [torch.ops.advprune.conv_input_grad,
                                      reference.conv_input_grad],
                         ids=["as built", "reference"])
def test_the_gradient_of_a_grey_image_is_autograds(operator):
    for size, (side, stride, padding) in product(
            [(28, 28), (9, 13)], [(4, 2, 1), (3, 1, 1), (5, 1, 0), (5, 2, 2), (7, 2, 3), (1, 1, 0),
                                  (2, 3, 0), (6, 4, 1)]):
        case = f"{side}x{side}, stride {stride}, padding {padding}, of {size}"
        torch.manual_seed(0)
        x = torch.rand(5, 1, *size, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(7, 1, side, side)
        out = F.conv2d(x, weight.double(), None, stride, padding)
        grad = torch.randn(out.shape)
        (wanted,) = torch.autograd.grad(out, x, grad.double())
        rows = grad.permute(0, 2, 3, 1).contiguous()
        found = operator(rows, weight, *size, stride, padding)
        assert found.shape == x.shape, case
        assert torch.allclose(found.double(), wanted, atol=2e-5), case


@pytest.mark.parametrize("kwargs", [
    {"kernel_size": 3}, {"kernel_size": 4, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": 5, "padding": "same"}, {"kernel_size": (3, 5)}, {"kernel_size": 9},
    {"kernel_size": 1, "stride": 2}, {"kernel_size": 3, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}])
def test_any_grey_convolution_keeps_its_function_and_gradients(kwargs):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 6, **kwargs), nn.ReLU())
    x = torch.rand(3, 1, 12, 12, requires_grad=True)
    fast = layers.speed_up(copy.deepcopy(plain))
    found, wanted = ([out := model(x), *torch.autograd.grad(out.square().sum(),
                                                            [x, *model.parameters()])]
                     for model in (fast, plain))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, wanted, strict=True))
    assert not torch.equal(found[1], torch.zeros_like(x))


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 15])
def test_a_strided_layer_of_few_channels_has_the_gradients_of_float64(channels):
    """PyTorch's own ends the process, or never ends, on a CPU with AVX2."""
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 2 * channels, 1, stride=(2, 3))
    x = torch.rand(4, channels, 31, 32, requires_grad=True)
    fast = layers.plain(layers.speed_up(copy.deepcopy(plain)))
    assert type(fast) is layers.StridedConv2d  # before it could go wrong
    layers.lay_out(fast, torch.channels_last)
    double, shape = copy.deepcopy(plain).double(), plain(x).shape
    for _ in range(20):
        grad = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        found = torch.autograd.grad(fast(x.contiguous(memory_format=torch.channels_last)),
                                    [x, *fast.parameters()], grad)
        exact = torch.autograd.grad(double(x.double()), [x, *double.parameters()], grad.double())
        for a, b in zip(found, exact, strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-3)


def test_the_mnist_network_takes_the_fast_way(monkeypatch):
    calls, fast = [], layers.conv_input_grad
    monkeypatch.setattr(layers, "conv_input_grad", lambda *args: (calls.append(1), fast(*args))[1])
    model, x, y = models.build("mnist-net", 1), torch.rand(4, 1, 28, 28), torch.arange(4)
    calls.clear()
    grad = attacks.input_grad(model, x, y)
    assert len(calls) == 1
    for layer in model:
        if isinstance(layer, layers.GreyConv2d):
            layer.__class__ = nn.Conv2d
    assert torch.allclose(grad, attacks.input_grad(model, x, y), atol=1e-6)
    assert len(calls) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_a_large_linear_layer_gives_the_products_of_float64(bias):
    for of_x, of_weights in [(True, True), (True, False), (False, True)]:
        torch.manual_seed(0)
        plain, x = nn.Linear(700, 100, bias), torch.randn(33, 700, requires_grad=of_x)
        fast = layers.speed_up(copy.deepcopy(plain))
        assert isinstance(fast, layers.DnnLinear) == layers.ONEDNN
        grad, double = torch.randn(33, 100), copy.deepcopy(plain).double()
        found, exact = fast(x), double(x.double())
        assert torch.allclose(found.double(), exact, atol=1e-4)
        ours, theirs = ([*[x] * of_x, *(model.parameters() if of_weights else [])]
                        for model in (fast, double))
        found = torch.autograd.grad(found, ours, grad)
        exact = torch.autograd.grad(exact, theirs, grad.double())
        for a, b in zip(found, exact, strict=True):
            assert torch.allclose(a.double(), b.double(), atol=1e-4)


def test_a_loaded_network_is_plain_and_differentiates_twice(trained):
    model = advprune.load(trained())
    assert {type(layer) for layer in model} <= {nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear}
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    x = torch.rand(2, 1, 28, 28, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_under_autocast_all_gradients_are_those_of_bfloat16():
    torch.manual_seed(0)
    fast, x = models.build("mnist-net", 1), torch.rand(8, 1, 28, 28, requires_grad=True)
    plain = copy.deepcopy(fast)
    plain[0].__class__ = nn.Conv2d
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (torch.autograd.grad(model(x).float().square().sum(),
                                             [x, *model.parameters()]) for model in (fast, plain))
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize(("name", "channels", "size"), [
    ("mnist-net", 1, 28), ("preactresnet18", 3, 32), ("wideresnet28-10", 3, 32)])
def test_either_layout_gives_the_same_logits_and_gradients(name, channels, size):
    torch.manual_seed(0)
    fast = models.build(name, channels, width=1 if channels == 3 else 16, size=size).eval()
    assert models.channels_last(fast)
    plain = copy.deepcopy(fast).to(memory_format=torch.contiguous_format)
    assert not models.channels_last(plain)
    x, y = torch.rand(4, channels, size, size), torch.arange(4)
    assert torch.allclose(fast(x), plain(x), atol=1e-5)
    assert torch.allclose(attacks.input_grad(fast, x, y), attacks.input_grad(plain, x, y),
                          atol=1e-5)


@pytest.mark.parametrize("modes", [(True, False), (True,), (False,)])
def test_a_network_that_views_its_features_stays_contiguous(modes, monkeypatch):
    class Views(nn.Module):
        def __init__(self, channels, classes, width, size):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(channels, 4, 3), nn.Linear(4 * 36, classes)

        def forward(self, x):
            x = self.conv(x)
            return self.linear(x.view(len(x), -1) if self.training in modes else x.flatten(1))

    monkeypatch.setitem(models.MODELS, "views", (Views, 1))
    model, x = models.build("views", 3, size=8), torch.rand(2, 3, 8, 8)
    assert not models.channels_last(model)
    assert model.train()(x).shape == model.eval()(x).shape == (2, 10)


LAYERS = {  # PyTorch's layer -> the shape of its inputs, and what speed_up makes of it
    nn.Linear(700, 100): ((700,), layers.DnnLinear if layers.ONEDNN else nn.Linear),
    nn.Conv2d(1, 6, 4, 2, 1): ((1, 9, 9), layers.GreyConv2d),
    nn.Conv2d(4, 6, 1, 2): ((4, 5, 5), layers.StridedConv2d),
    nn.Flatten(): ((3, 5, 5), layers.FastFlatten),
    nn.BatchNorm2d(6): ((6, 3, 3), layers.FastBatchNorm2d)}


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("plain", LAYERS, ids=lambda layer: type(layer).__name__)
def test_any_number_of_rows_as_in_pytorch(plain, training, rows):
    fast, results = layers.speed_up(copy.deepcopy(plain)), []
    shape, kind = LAYERS[plain]
    for layer in (fast, copy.deepcopy(plain)):
        layer.train(training)
        x = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if len(shape) == 3:
            x = x.contiguous(memory_format=torch.channels_last)
        norm = isinstance(layer, nn.BatchNorm2d)
        out = layers.batch_norm_relu(layer, x) if norm else layer(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()]),
                        *layer.buffers()])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert isinstance(fast, kind)


# --- batch normalisation with its ReLU

def both_norms(channels, training, **kwargs):
    """A layer as it is fast, and PyTorch's in float64, of the same weights and statistics."""
    torch.manual_seed(channels)
    layer = nn.BatchNorm2d(channels, **kwargs).eval()
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.running_var, 0.5, 2)
    double = copy.deepcopy(layer).double()
    return layers.speed_up(layer).train(training), double.train(training)


@BUILT
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_with_its_relu_is_that_of_float64(training, dtype):
    for shape in [(32, 16, 16, 16), (5, 19, 7, 3), (4, 3, 9, 9), (2, 1, 3, 3), (3, 48, 1, 1),
                  (64, 520, 4, 4), (1, 16, 1, 2)]:
        fast, double = both_norms(shape[1], training, momentum=0.3)
        draw = torch.Generator().manual_seed(1)
        x = (3 * torch.randn(shape, generator=draw) + 20).to(dtype)  # a mean of many deviations
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        grad = torch.randn(shape, generator=draw).to(dtype)
        assert fast.takes(x.permute(0, 2, 3, 1))
        exact = x.detach().double().requires_grad_()
        found, wanted = layers.batch_norm_relu(fast, x), F.relu(double(exact))
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        results = [found, *torch.autograd.grad(found, [x, *fast.parameters()], grad)]
        exacts = [wanted, *torch.autograd.grad(wanted, [exact, *double.parameters()],
                                               grad.double())]
        digits = 2e-2 if dtype == torch.bfloat16 else 2e-4
        for a, b in zip(results, exacts, strict=True):
            assert (a.double() - b).norm() <= digits * b.norm() + 1e-4, shape
        for name, value in double.named_buffers():
            assert torch.allclose(getattr(fast, name).double(), value.double(), rtol=1e-5), name


@BUILT
def test_batch_norm_has_the_same_bits_on_any_number_of_threads():
    x, draw = torch.randn(64, 8, 8, 24), torch.rand(24)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        out = torch.ops.advprune.batch_norm_relu(x, draw, draw, None, None, 1e-5)
        grads = torch.ops.advprune.batch_norm_relu_grad(x, x, draw, draw, *out[1:], 1e-5, True)
        found.append(torch.cat([part.flatten() for part in (*out, *grads)]))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@BUILT
def test_batch_norm_passes_nan_on_and_rounds_to_the_nearest():
    values = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3e38, torch.inf,
                           torch.nan, -torch.nan, -1.0, 0.0, 1e-40])
    x = values.repeat(2).view(1, 1, -1, 1)
    one = torch.ones(1)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.ops.advprune.batch_norm_relu(x.to(dtype), one, 0 * one, 0 * one, one, 0.0)[0]
        assert torch.equal(out.nan_to_num(-5), F.relu(x.to(dtype)).nan_to_num(-5))
        # A scale of 1 + 2^-8 gives what bfloat16 has to round.
        scale = one + 2**-8
        out = torch.ops.advprune.batch_norm_relu(x.to(dtype), scale, 0 * one, 0 * one, one, 0.0)[0]
        wanted = F.relu(x.to(dtype).float() * scale).to(dtype)
        assert torch.equal(out.nan_to_num(-5), wanted.nan_to_num(-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_what_the_kernel_does_not_take_goes_to_pytorch(dtype):
    x = torch.rand(4, 6, 5, 5, dtype=dtype)  # float32: it is not channels-last
    fast, double = (norm.to(dtype) for norm in both_norms(6, True))
    assert torch.equal(layers.batch_norm_relu(fast, x), F.relu(double(x)))


@pytest.mark.parametrize("kwargs", [
    {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_unusual_batch_norms_stay_pytorchs(kwargs):
    layer = layers.speed_up(nn.BatchNorm2d(6, **kwargs))
    assert type(layer) is nn.BatchNorm2d
    x = torch.rand(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(layers.batch_norm_relu(layer, x), F.relu(copy.deepcopy(layer)(x)))


def test_one_value_for_each_channel_raises_as_in_pytorch():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layers.batch_norm_relu(both_norms(6, True)[0], torch.rand(1, 6, 1, 1))


@BUILT
@pytest.mark.parametrize("name", ["preactresnet18", "wideresnet28-10"])
def test_residual_networks_take_the_fast_norms_and_load_without_them(name, monkeypatch):
    calls, fast = [], torch.ops.advprune.batch_norm_relu
    monkeypatch.setattr(torch.ops.advprune, "batch_norm_relu",
                        lambda *args: (calls.append(1), fast(*args))[1])
    model, x = models.build(name, 3, width=1, size=32), torch.rand(2, 3, 32, 32)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    calls.clear()
    model(x.contiguous(memory_format=torch.channels_last))
    assert len(calls) == len(norms) > 10
    layers.plain(model)
    assert {type(layer) for layer in norms} == {nn.BatchNorm2d}
    x.requires_grad_()
    (grad,) = torch.autograd.grad(model.eval()(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()  # twice
    assert x.grad.abs().sum() > 0
