"""The networks. All take images [B, C, H, W] in [0, 1] and normalise them as their first step.

    mnist-net              fast_adversarial's LeNet-like network
    preactresnet18         He et al. 2016, in fast_adversarial's form: the shortcut takes x
    preactresnet18-v2      in kuangliu's form, RobustBench's V2: it takes relu(bn1(x))
    wideresnet28-10        Zagoruyko & Komodakis 2016, in RobustBench's form
    wideresnet28-10-silu   the same with SiLU, as in Gowal 2020, Rebuffi 2021, Wang 2023
    resnet18, vgg11, ...   torchvision's classifiers by their names there
    FILE.py:NAME           your own (own_code.py)

`width` is the number of channels of the first layer (mnist-net 16, preactresnet18 64), or the
widening factor of the wide ones (10). Layer names are those of the published weights
(fast_adversarial, RobustBench, torchvision), which load unchanged: the normalisation adds none.
The colour networks have one built in, CIFAR-10's or torchvision's; `mean` and `std` replace it.
"""
import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune import layers, memory, ops, own_code
from advprune.attacks import class_labels, evaluating, in_range, logits_of, predicted
from advprune.errors import UserError, first_line

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


def normalise(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """A network of this file or of torchvision with this normalisation instead of its own."""
    normalize = Normalize(mean, std)
    if isinstance(model, nn.Sequential):  # mnist-net, which has none
        return nn.Sequential(OrderedDict(normalize=normalize, **dict(model.named_children())))
    model.normalize = normalize
    return model


def normalisation(model: nn.Module) -> tuple[list[float], list[float]]:
    """(mean, std) of the network's Normalize layer, one value or one for each channel.

    Without such a layer they are those of images that stay as they are.
    """
    for layer in model.modules():
        if isinstance(layer, Normalize):
            return layer.mean.flatten().tolist(), layer.std.flatten().tolist()
    return [0.0], [1.0]


def shown_normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """A normalisation in words."""
    if set(mean) == {0.0} and set(std) == {1.0}:
        return "none"
    return " and ".join(f"{name} {', '.join(f'{value:.6g}' for value in values)}"
                        for name, values in (("mean", mean), ("std", std)))


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
        out = self.conv1(layers.batch_norm_relu(self.bn1, x))
        return self.conv2(layers.batch_norm_relu(self.bn2, out)) + self.shortcut(x)


class PreActBlockV2(PreActBlock):
    """The same layers; a convolution in the shortcut takes the activation of x."""

    def forward(self, x: Tensor) -> Tensor:
        active = layers.batch_norm_relu(self.bn1, x)
        out = layers.batch_norm_relu(self.bn2, self.conv1(active))
        rest = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return self.conv2(out) + rest


class PreActResNet18(nn.Module):
    def __init__(self, channels: int, classes: int, width: int, size: int,
                 block: type[PreActBlock] = PreActBlock) -> None:
        super().__init__()
        self.normalize = cifar10_normalize(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        def blocks(inputs, outputs, stride):
            return nn.Sequential(block(inputs, outputs, stride), block(outputs, outputs, 1))

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
    "preactresnet18-v2": (partial(PreActResNet18, block=PreActBlockV2), 64),
    "wideresnet28-10": (WideResNet28, 10),
    "wideresnet28-10-silu": (partial(WideResNet28, activation=batch_norm_silu), 10),
}


# What a weights file does not say: networks that differ in it have tensors of the same names.
FORMS = {
    "preactresnet18": "the shortcut takes x",
    "preactresnet18-v2": "the shortcut takes relu(bn1(x))",
    "wideresnet28-10": "with ReLU",
    "wideresnet28-10-silu": "with SiLU",
}


def described(name: str, model: nn.Module) -> str:
    """The network in words: its name, its form, and its normalisation."""
    if own_code.is_file(name):
        return f"{name}, which normalises images by itself"
    form = f" ({FORMS[name]})" if name in FORMS else ""
    return f"{name}{form}, normalisation: {shown_normalisation(*normalisation(model))}"


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
          sha256: str | None = None, code: str | None = None, mean: Sequence[float] | None = None,
          std: Sequence[float] | None = None) -> nn.Module:
    """The network `name` for images [channels, size, size], with random weights.

    code is the source of a FILE.py:NAME, read from there if None; sha256 belongs to its record
    in a run. mean and std, one value or one for each channel, replace the built-in normalisation.
    Raises UserError if the network cannot be trained and attacked on such images, or does not
    give `classes` logits for each.
    """
    if own_code.is_file(name):
        model = own_code.construct(name, own_code.source(name) if code is None else code,
                                 channels=channels, classes=classes, size=size, width=width)
    elif name in MODELS:
        constructor, default = MODELS[name]
        model = constructor(channels, classes, width or default, size)
    else:
        model = _from_torchvision(check_name(name), channels, classes, width)
    if mean is not None and std is not None:
        _check_normalisation(name, channels, mean, std)
        model = normalise(model, mean, std)
    layers.speed_up(model)
    images = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    try:
        _try(name, model, images, classes)
    except UserError:  # one that reshapes its features by `view` may take one layout only
        _try(name, layers.lay_out(model, torch.contiguous_format), images, classes)
    return model


def _check_normalisation(name, channels, mean, std):
    """Raise UserError if --mean and --std are not for this network."""
    if own_code.is_file(name):
        raise UserError("--mean and --std are not for a network of your own; put "
                        "advprune.models.Normalize(mean, std) in front of it in its file")
    inputs = channels if name in MODELS else 3  # torchvision's take grey images as three channels
    for flag, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, inputs):
            raise UserError(f"{flag} has {len(values)} values, but {name} takes images of "
                            f"{inputs} channel{'s' * (inputs > 1)}; give one value, or one for "
                            "each channel")


def _try(name, model, images, classes):
    """Raise UserError unless a copy of the model can be attacked, trained, evaluated and saved.

    images [3, C, H, W]. Batch normalisation in train mode takes no single one; the last batch of
    an evaluation may be one. Random numbers stay as they were.
    """
    try:
        trial = copy.deepcopy(model)
    except Exception as error:  # of whatever the user's code keeps in it
        raise UserError(f"{name} cannot be copied ({first_line(error)}); keep no results of "
                        "layers, no generators and no files in its attributes") from None
    shape = "x".join(map(str, images.shape[1:]))
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for mode, n, attacked in (("train", 2, True), ("train", 3, False), ("eval", 1, True)):
            trial.train(mode == "train")
            if wrong := _fault(trial, images[:n], classes, attacked):
                raise UserError(f"{name} on images of {shape} in {mode} mode: {wrong}")
    before, after = ({key: getattr(value, "shape", None) for key, value in m.state_dict().items()}
                     for m in (model, trial))
    if before != after:
        raise UserError(f"{name} adds or resizes tensors of its state_dict() while it classifies, "
                        "so it cannot be saved and loaded; make them all in __init__")


def _fault(model, images, classes, attacked):
    """What is wrong with an attack, or else an update, of the model on these images; or None."""
    n, x = len(images), images.clone().requires_grad_(attacked)
    given = x.clone()  # a network may change it in place, unlike x
    try:
        logits = model(given)
        if not torch.is_tensor(logits) or logits.shape != (n, classes):
            result = list(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
            return (f"it gives {result} for {n} image{'s' * (n > 1)}, not logits [{n}, "
                    f"{classes}]")
        if given._version or not torch.equal(given, images):
            return ("it changes its images in place, which attacks need unchanged; write "
                    "x = x - 0.5 and not x -= 0.5, and begin with no layer of inplace=True")
        if not attacked:
            if logits.requires_grad:
                logits.sum().backward()
        elif not logits.requires_grad or torch.autograd.grad(
                logits.sum(), x, allow_unused=True)[0] is None:
            return ("its logits have no gradient with respect to the images, which attacks need; "
                    "remove detach(), no_grad() and numpy from its forward pass")
    except Exception as error:  # a layer's own words, such as a kernel larger than its input
        return f"it fails with {first_line(error)}"
    return None


def spec(settings: "Settings", dataset: "Dataset") -> dict:
    """What `build` takes, and config.json records, for the network of a run on these images."""
    channels, size = dataset.images.shape[1], dataset.images.shape[-1]
    made = dict(name=settings.model, channels=channels, classes=len(dataset.classes),
                width=settings.width, size=size, mean=settings.mean, std=settings.std)
    if own_code.is_file(settings.model):
        made["sha256"] = own_code.digest(own_code.source(settings.model))
    return made


def channels_last(model: nn.Module) -> bool:
    """Whether the network's convolutions are in the channels-last layout."""
    return any(weight.dim() == 4 and not weight.is_contiguous()
               and weight.is_contiguous(memory_format=torch.channels_last)
               for weight in model.parameters())


def predict(model: nn.Module, images: Tensor, batch_size: int = 200) -> Tensor:
    """The classes [N] that the model, in eval mode, predicts for images [N, C, H, W].

    It is -1 if it predicts none (attacks.predicted). Images are uint8, or floats in [0, 1];
    for others it raises ValueError.
    """
    classes: list[Tensor] = []

    def work(first, end):
        classes.append(predicted(logits_of(model, ops.pixels(in_range(images[first:end])))))

    with evaluating(model), torch.no_grad():
        memory.in_parts(work, len(images), batch_size)
    return torch.cat(classes)


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Which test images [N, C, H, W] the model, in eval mode, classifies as labels [N].

    Raises UserError if it predicts no class for some, and ValueError for what is no images or
    labels (`predict`, attacks.class_labels).
    """
    labels = class_labels(labels, len(images))
    classes = predict(model, images)
    if none := int((classes < 0).sum()):
        raise UserError(f"the network gives NaN or infinite logits for {none} of the "
                        f"{len(labels)} test images, so its accuracy says nothing; check its "
                        "weights, or train it with a smaller --lr")
    return classes == labels
