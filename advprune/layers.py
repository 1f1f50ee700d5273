"""Networks as they are fastest: channels-last, and on a CPU faster layers of the same function.

Channels-last is the faster layout of most convolutional networks (docs/speed.md). Large
matrix products are oneDNN's: MKL's took twice as long on a CPU of AMD. Batch normalisation and the
ReLU after it are one pass.

An attack needs the gradient with respect to the image. With one input channel PyTorch's takes many
times the forward pass on a CPU; `conv_input_grad` takes a few times the forward pass. The update
needs the bias' gradient, for which oneDNN takes a slow way there.
"""
import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune import ops  # noqa: F401  it registers conv_input_grad

ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")
VECTOR = 16  # float32 numbers in the longest vector of a CPU
LARGE = 2**16  # weights of a layer from which on oneDNN's products are faster


def conv_input_grad(grad: Tensor, weight: Tensor, height: int, width: int, stride: int,
                    padding: int) -> Tensor:
    """The gradient [B, 1, height, width] of a convolution's grey input, for that of its output.

    grad [B, K, OH, OW] and weight [K, 1, R, R], float32 on a CPU; R up to 7.
    """
    grad = grad.permute(0, 2, 3, 1).contiguous()  # [B, OH, OW, K]: free if it is channels-last
    return torch.ops.advprune.conv_input_grad(grad, weight.contiguous(), height, width, stride,
                                              padding)


class GreyConv2d(nn.Conv2d):
    """nn.Conv2d for one input channel: the same function, with another way to its gradients."""

    def forward(self, x: Tensor) -> Tensor:
        if (x.device.type == "cpu" and torch.is_grad_enabled() and x.dtype == torch.float32
                and not torch.compiler.is_compiling()):
            return _GreyConv.apply(x, self.weight, self.bias, self.stride[0], self.padding[0])
        return super().forward(x)


class _GreyConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int,
                padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.how
        image = filters = biases = None
        grad = grad.float()  # bfloat16 under autocast
        if ctx.needs_input_grad[0]:
            image = conv_input_grad(grad, weight, x.shape[2], x.shape[3], stride, padding)
        if ctx.needs_input_grad[1]:
            filters = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
                [False, True, False])[1]
        if ctx.needs_input_grad[2]:  # by itself: with it, oneDNN's gradient takes thrice the time
            biases = grad.sum((0, 2, 3))
        return image, filters, biases, None, None


class DnnLinear(nn.Linear):
    """nn.Linear by oneDNN, which serves AVX-512 on every CPU that has it; MKL does on Intel's."""

    def forward(self, x: Tensor) -> Tensor:
        if (x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 2 and len(x)
                and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()):
            return _DnnLinear.apply(x, self.weight, self.bias)
        return super().forward(x)


def _product(x, weight, bias=None):
    """x weight^T + bias."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _DnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (_product(grad, weight.t()) if wanted[0] else None,
                _product(grad.t(), x.t()) if wanted[1] else None,
                grad.sum(0) if wanted[2] else None)


class FastFlatten(nn.Flatten):
    """nn.Flatten whose gradient has the layout of its input: the layers before are fast in it."""

    def forward(self, x: Tensor) -> Tensor:
        if (not torch.compiler.is_compiling() and x.grad_fn is not None and x.dim() == 4
                and x.is_contiguous(memory_format=torch.channels_last)):
            x.register_hook(_channels_last)
        return super().forward(x)


def _channels_last(grad):
    return grad.contiguous(memory_format=torch.channels_last)


class FastBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d, for `batch_norm_relu`."""

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def takes(self, rows: Tensor) -> bool:
        """Whether the kernel can serve these images [B, H, W, C]."""
        return (rows.device.type == "cpu" and rows.dtype in (torch.float32, torch.bfloat16)
                and self.weight.dtype == torch.float32 and rows.shape[3:] == self.weight.shape
                and rows.is_contiguous() and rows[..., 0].numel() > 1
                and not torch.compiler.is_compiling())


def batch_norm_relu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """relu(norm(x)) of x [B, C, H, W]; by one kernel on a CPU, if x is channels-last.

    Outputs, gradients and running statistics are those of PyTorch's two layers, within rounding.
    """
    rows = x.permute(0, 2, 3, 1)
    if not isinstance(norm, FastBatchNorm2d) or not norm.takes(rows):
        return F.relu(norm(x))
    given = (None, None) if norm.training else (norm.running_mean, norm.running_var)
    out, mean, var = _BatchNormReLU.apply(rows, norm.weight, norm.bias, *given, norm.eps)
    if norm.training:
        n = rows[..., 0].numel()
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (n / (n - 1)), norm.momentum)
    return out.permute(0, 3, 1, 2)


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None,
                var: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        ctx.how = eps, mean is None
        out, mean, var = torch.ops.advprune.batch_norm_relu(x, weight, bias, mean, var, eps)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.ops.advprune.batch_norm_relu_grad(
            grad.contiguous(), *ctx.saved_tensors, *ctx.how), None, None, None


class StridedConv2d(nn.Conv2d):
    """nn.Conv2d of 1x1 filters with a stride: it chooses the pixels first, then convolves.

    If channels-last images have few channels, oneDNN's gradient of the filters is wrong and writes
    beyond its memory on a CPU with AVX2 (its issue 6035, open as of version 3.14).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias, groups=self.groups)


def speed_up(model: nn.Module) -> nn.Module:
    """The same network, with its layers and layout as they are fastest.

    Attacks differentiate once, and so do the fast layers. `plain` undoes what is only for speed.
    """
    for layer in model.modules():
        if (type(layer) is nn.Conv2d and layer.kernel_size == (1, 1) and layer.padding == (0, 0)
                and layer.stride != (1, 1) and layer.in_channels // layer.groups < VECTOR):
            layer.__class__ = StridedConv2d
        if (type(layer) is nn.Conv2d and layer.in_channels == 1 and layer.kernel_size[0] <= 7
                and layer.padding_mode == "zeros" and layer.dilation == (1, 1)
                and isinstance(layer.padding, tuple)
                and all(a == b for a, b in (layer.kernel_size, layer.stride, layer.padding))):
            layer.__class__ = GreyConv2d
        if type(layer) is nn.Linear and layer.weight.numel() >= LARGE and ONEDNN:
            layer.__class__ = DnnLinear
        if (type(layer) is nn.BatchNorm2d and ops.KERNELS != "reference" and layer.momentum
                and layer.bias is not None and layer.running_mean is not None):
            layer.__class__ = FastBatchNorm2d
        if type(layer) is nn.Flatten:
            layer.__class__ = FastFlatten
    return lay_out(model, torch.channels_last)


def plain(model: nn.Module) -> nn.Module:
    """The same network of PyTorch's own layers, contiguous, as other libraries expect it.

    StridedConv2d stays: with it the network is right in channels-last too.
    """
    own: dict[type, Any] = {GreyConv2d: nn.Conv2d, DnnLinear: nn.Linear, FastFlatten: nn.Flatten,
                            FastBatchNorm2d: nn.BatchNorm2d}
    for layer in model.modules():
        layer.__class__ = own.get(type(layer), type(layer))
    return lay_out(model, torch.contiguous_format)


def lay_out(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Put the weights into this layout; the strides too, if one input channel fits both."""
    model.to(memory_format=layout)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] == 1:
            weight = layer.weight.data
            strides = torch.empty(weight.shape, memory_format=layout).stride()
            layer.weight.data = weight.as_strided(weight.shape, strides)
    return model
