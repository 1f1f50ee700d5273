"""The networks. All take images [B, C, H, W] in [0, 1] and normalise them as their first step.

    mnist-net              fast_adversarial's LeNet-like network
    preactresnet18         He et al. 2016, in fast_adversarial's form
    wideresnet28-10        Zagoruyko & Komodakis 2016, in RobustBench's form
    wideresnet28-10-silu   the same with SiLU, as in Gowal 2020, Rebuffi 2021, Wang 2023
    resnet18, resnet50     torchvision's, for larger images

`width` counts the channels of the first layer (16, 64), or widens the wide ones (10).
Layer names are those of the published weights (fast_adversarial, RobustBench, torchvision), which
load unchanged; the normalisation is a buffer outside the state dict.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torchvision.models import resnet

from runs import UserError

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """(x - mean) / std by channel, by default fast_adversarial's for CIFAR-10; grey stays."""

    def __init__(self, channels, mean=CIFAR10_MEAN, std=CIFAR10_STD):
        super().__init__()
        mean, std = (mean, std) if channels == 3 else ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x):
        return (x - self.mean) / self.std


def mnist_net(channels, classes, width, size):
    """Two convolutions and two linear layers, with the published keys 0, 2, 5, 7."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, 100), nn.ReLU(), nn.Linear(100, classes))


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        # The shortcut leaves from x itself, not from its activation: so fast_adversarial, unlike
        # kuangliu's.
        out = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class PreActResNet18(nn.Module):
    def __init__(self, channels, classes, width, size):
        super().__init__()
        self.normalize = Normalize(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        inputs = width
        for i in range(4):
            outputs = width * 2**i
            blocks = (PreActBlock(inputs, outputs, 1 if i == 0 else 2),
                      PreActBlock(outputs, outputs, 1))
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.bn = nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = F.relu(self.bn(out)).mean((2, 3))  # [B, 8 width]
        return self.linear(out)


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, activation):
        super().__init__()
        self.activation, self.stride = activation, stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        )

    def forward(self, x):
        out = self.activation(self.batchnorm_0(x))
        rest = self.shortcut(out) if self.shortcut else x
        # TensorFlow's SAME padding, as these weights were trained with: a stride of 2 pads on one
        # side only.
        out = self.conv_0(F.pad(out, (1, 1, 1, 1) if self.stride == 1 else (0, 1, 0, 1)))
        return self.conv_1(self.activation(self.batchnorm_1(out))) + rest


class WideResNet28(nn.Module):
    def __init__(self, channels, classes, width, size, activation=F.relu):
        super().__init__()
        self.normalize, self.activation = Normalize(channels), activation
        self.init_conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        groups, inputs = [], 16
        for outputs, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            blocks = [WideBlock(inputs, outputs, stride, activation)]
            blocks += [WideBlock(outputs, outputs, 1, activation) for _ in range(3)]
            groups.append(nn.Sequential())
            groups[-1].block = nn.Sequential(
                *blocks
            )  # the published names: layer.0.block.0.conv_0
            inputs = outputs
        self.layer = nn.Sequential(*groups)
        self.batchnorm = nn.BatchNorm2d(inputs)
        self.logits = nn.Linear(inputs, classes)

    def forward(self, x):
        out = self.layer(self.init_conv(self.normalize(x)))
        out = self.activation(self.batchnorm(out)).mean((2, 3))  # [B, 64 width]
        return self.logits(out)


def wideresnet28_silu(channels, classes, width, size):
    return WideResNet28(channels, classes, width, size, F.silu)


class ResNet(resnet.ResNet):
    def __init__(self, block, layers, channels, classes, width):
        if width != 64:
            raise UserError(f"torchvision's ResNets have no --width {width}; leave it out")
        super().__init__(block, layers, num_classes=classes)
        self.normalize = Normalize(channels, IMAGENET_MEAN, IMAGENET_STD)
        if channels != 3:
            self.conv1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False)

    def forward(self, x):
        return super().forward(self.normalize(x))


def resnet18(channels, classes, width, size):
    return ResNet(resnet.BasicBlock, [2, 2, 2, 2], channels, classes, width)


def resnet50(channels, classes, width, size):
    return ResNet(resnet.Bottleneck, [3, 4, 6, 3], channels, classes, width)


MODELS = {  # name -> constructor, default width
    "mnist-net": (mnist_net, 16),
    "preactresnet18": (PreActResNet18, 64),
    "wideresnet28-10": (WideResNet28, 10),
    "wideresnet28-10-silu": (wideresnet28_silu, 10),
    "resnet18": (resnet18, 64),
    "resnet50": (resnet50, 64),
}
DEFAULT = {1: "mnist-net", 3: "preactresnet18"}  # by the number of colour channels


def build(name, channels, classes=10, width=None, size=28):
    """The network `name` for images [channels, size, size], from torch's generator."""
    constructor, default = MODELS[name]
    return constructor(channels, classes, width or default, size)


def load_weights(model, path):
    """Load a state dict (.safetensors, or a torch file of tensors alone) into the model.

    Accepts what the field publishes: a bare state dict, or one under `state_dict`,
    `model_state_dict` or `model`; names after `module.`; half precision. Raises UserError
    where the file is unreadable or does not fit.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no weights file {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # zip, pickle and safetensors each raise their own kinds
        raise UserError(f"{path} is no readable file of weights alone") from None
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{path} holds no state dict")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = model.state_dict()
    for key in wanted:  # a count that nothing reads, and that older files lack
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, wanted[key])
    for key in ("mean", "std"):  # RobustBench stores its normalisation; here it is built in
        state.pop(key, None)
    wrong = [key for key in wanted if key not in state or state[key].shape != wanted[key].shape]
    wrong += [key for key in state if key not in wanted]
    if wrong:
        raise UserError(f"{path} does not fit this network: {len(wrong)} tensors differ, first "
                        f"{wrong[0]!r}; name the right --dataset, --model or --width")
    if bad := [key for key in wanted if not state[key].isfinite().all()]:
        raise UserError(f"{path} holds weights that are not finite, first in {bad[0]!r}")
    model.load_state_dict(state)
    return model


def from_run(run, config):
    """The finished network of a run directory, given its config.json."""
    network = config["args"]["network"]
    return load_weights(build(**network), Path(run) / "model.safetensors")


@torch.no_grad()
def predict(model, images, batch_size=1000):
    """The classes [N] that the model, in eval mode, predicts for images [N, C, H, W] uint8."""
    mode = model.training
    model.eval()
    try:
        return torch.cat([model(x.float() / 255).argmax(1) for x in images.split(batch_size)])
    finally:
        model.train(mode)
