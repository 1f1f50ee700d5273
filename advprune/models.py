"""The networks. All take images [B, C, H, W] in [0, 1] and normalise them as their first step.

    mnist-net              fast_adversarial's LeNet-like network
    preactresnet18         He et al. 2016, in fast_adversarial's form
    wideresnet28-10        Zagoruyko & Komodakis 2016, in RobustBench's form
    wideresnet28-10-silu   the same with SiLU, as in Gowal 2020, Rebuffi 2021, Wang 2023
    resnet18, vgg11, ...   torchvision's classifiers by their names there
    FILE.py:NAME           your own (own_code.py)

`width` is the number of channels of the first layer (mnist-net 16, preactresnet18 64), or the
widening factor of the wide ones (10). Layer names are those of the published weights
(fast_adversarial, RobustBench, torchvision), which load unchanged: the normalisation adds none.
"""
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune import layers, memory, own_code
from advprune.attacks import evaluating, logits_of, predicted
from advprune.errors import UserError

if TYPE_CHECKING:
    from advprune.config import Settings
    from advprune.data import Dataset

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(x - mean) / std for each channel, as a network's first layer.

    A network that expects normalised images becomes one of images in [0, 1] by
    `nn.Sequential(Normalize(mean, std), network)`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def cifar10_normalize(channels: int) -> Normalize:
    """fast_adversarial's normalisation of CIFAR-10 for colour; grey images stay as they are."""
    return Normalize(CIFAR10_MEAN, CIFAR10_STD) if channels == 3 else Normalize((0.0,), (1.0,))


def mnist_net(channels: int, classes: int, width: int, size: int) -> nn.Module:
    """Two convolutions and two linear layers, with the published keys 0, 2, 5, 7."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, 100), nn.ReLU(), nn.Linear(100, classes))


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        # The shortcut takes x, not its activation, as in fast_adversarial. kuangliu's code takes
        # the activation.
        out = self.conv1(layers.batch_norm_relu(self.bn1, x))
        return self.conv2(layers.batch_norm_relu(self.bn2, out)) + self.shortcut(x)


class PreActResNet18(nn.Module):
    def __init__(self, channels: int, classes: int, width: int, size: int) -> None:
        super().__init__()
        self.normalize = cifar10_normalize(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        def blocks(inputs, outputs, stride):
            return nn.Sequential(PreActBlock(inputs, outputs, stride),
                                 PreActBlock(outputs, outputs, 1))

        self.layer1 = blocks(width, width, 1)
        self.layer2 = blocks(width, 2 * width, 2)
        self.layer3 = blocks(2 * width, 4 * width, 2)
        self.layer4 = blocks(4 * width, 8 * width, 2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = layers.batch_norm_relu(self.bn, out).mean((2, 3))  # [B, 8 width]
        return self.linear(out)


def batch_norm_silu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.silu(norm(x))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, activation: Callable) -> None:
        super().__init__()
        self.activation, self.stride = activation, stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.batchnorm_0, x)
        rest = x if self.shortcut is None else self.shortcut(out)
        # TensorFlow's SAME padding, as these weights were trained with: a stride of 2 pads on one
        # side only.
        out = self.conv_0(F.pad(out, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1)))
        return self.conv_1(self.activation(self.batchnorm_1, out)) + rest


class WideResNet28(nn.Module):
    def __init__(self, channels: int, classes: int, width: int, size: int,
                 activation: Callable = layers.batch_norm_relu) -> None:
        super().__init__()
        self.normalize, self.activation = cifar10_normalize(channels), activation
        self.init_conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        groups, inputs = [], 16
        for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            blocks = [WideBlock(inputs, outputs, stride, activation)]
            blocks += [WideBlock(outputs, outputs, 1, activation) for _ in range(3)]
            groups.append(nn.Sequential())
            groups[-1].block = nn.Sequential(*blocks)  # published as layer.0.block.0.conv_0
            inputs = outputs
        self.layer = nn.Sequential(*groups)
        self.batchnorm = nn.BatchNorm2d(inputs)
        self.logits = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv(self.normalize(x)))
        out = self.activation(self.batchnorm, out).mean((2, 3))  # [B, 64 width]
        return self.logits(out)


def torchvision_names() -> set[str]:
    """torchvision's classifiers, except two that give a tuple in train mode."""
    from torchvision import models

    return set(models.list_models(module=models)) - {"googlenet", "inception_v3"}


def _from_torchvision(name, channels, classes, width):
    from torchvision import models

    if width is not None:
        raise UserError(f"torchvision's {name} has no --width {width}; leave it out")
    model = models.get_model(name, weights=None, num_classes=classes)
    model.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    # A hook, and not a layer in front, keeps the published layer names. Grey images are expanded.
    model.register_forward_pre_hook(
        lambda module, images: (module.normalize(images[0].expand(-1, 3, -1, -1)),))
    return model


MODELS: dict[str, tuple[Callable[..., nn.Module], int]] = {  # name -> constructor, default width
    "mnist-net": (mnist_net, 16),
    "preactresnet18": (PreActResNet18, 64),
    "wideresnet28-10": (WideResNet28, 10),
    "wideresnet28-10-silu": (partial(WideResNet28, activation=batch_norm_silu), 10),
}


def check_name(name: str) -> str:
    """The name, with a file's absolute path. Raises UserError for a name of no network."""
    if own_code.is_file(name):
        own_code.source(name)
        return own_code.resolve(name)
    if name not in MODELS and name not in torchvision_names():
        raise UserError(f"--model: there is no network {name!r}; choose {', '.join(MODELS)}, a "
                        "classifier of torchvision, or FILE.py:NAME")
    return name


def build(name: str, channels: int, classes: int = 10, width: int | None = None, size: int = 28,
          sha256: str | None = None, code: str | None = None) -> nn.Module:
    """The network `name` for images [channels, size, size], with random weights.

    code is the source of a FILE.py:NAME, read from there if None; sha256 belongs to its record
    in a run. Raises UserError where the network does not take such images, or does not give
    `classes` logits for each.
    """
    if own_code.is_file(name):
        model = own_code.construct(name, own_code.source(name) if code is None else code,
                                 channels=channels, classes=classes, size=size, width=width)
    elif name in MODELS:
        constructor, default = MODELS[name]
        model = constructor(channels, classes, width or default, size)
    else:
        model = _from_torchvision(check_name(name), channels, classes, width)
    images = torch.zeros(2, channels, size, size)
    try:
        with evaluating(model), torch.no_grad():
            logits = model(images)
    except Exception as error:  # a layer's own words, such as a kernel larger than its input
        raise UserError(f"{name} does not take images of {channels}x{size}x{size}: "
                        + str(error).partition("\n")[0]) from error
    if not torch.is_tensor(logits) or logits.shape != (2, classes):
        given = list(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
        raise UserError(f"{name} gives {given} for 2 images, not logits [2, {classes}]")
    with evaluating(model), torch.no_grad():
        return layers.speed_up(model, images)


def spec(settings: "Settings", dataset: "Dataset") -> dict:
    """What `build` takes, and config.json records, for the network of a run on these images."""
    channels, size = dataset.images.shape[1], dataset.images.shape[-1]
    made = dict(name=settings.model, channels=channels, classes=len(dataset.classes),
                width=settings.width, size=size)
    if own_code.is_file(settings.model):
        made["sha256"] = own_code.digest(own_code.source(settings.model))
    return made


def channels_last(model: nn.Module) -> bool:
    """Whether the network's convolutions are in the channels-last layout."""
    return any(weight.dim() == 4 and not weight.is_contiguous()
               and weight.is_contiguous(memory_format=torch.channels_last)
               for weight in model.parameters())


def predict(model: nn.Module, images: Tensor, batch_size: int = 200) -> Tensor:
    """The classes [N] that the model, in eval mode, predicts for images [N, C, H, W] uint8.

    It is -1 where it predicts none (attacks.predicted).
    """
    classes: list[Tensor] = []

    def work(first, end):
        classes.append(predicted(logits_of(model, images[first:end].float() / 255)))

    with evaluating(model), torch.no_grad():
        memory.in_parts(work, len(images), batch_size)
    return torch.cat(classes)


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which test images [N, C, H, W] uint8 the model, in eval mode, classifies as labels [N].

    Raises UserError where it predicts no class for some.
    """
    classes = predict(model, images)
    if none := int((classes < 0).sum()):
        raise UserError(f"the network gives NaN or infinite logits for {none} of the "
                        f"{len(labels)} test images, so its accuracy says nothing; check its "
                        "weights, or train it with a smaller --lr")
    return classes == labels
