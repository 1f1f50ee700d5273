"""A finished run's network in a folder of its own, for use without advprune.

    model.safetensors   the weights by the names of their layers
    model.pt2           the network as a program of torch.export, for any batch size
    model.onnx          the same as ONNX, if the packages onnx and onnxscript are installed
    robustbench.pt      the weights as RobustBench's network loads them, if it has the network
    classes.json        the names of the classes, in the order of the logits
    README.md           lines of code that load it, and that make an image what it was trained on
"""
import io
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from advprune import distributed, files, layers, models, own_code, run, weights
from advprune.errors import UserError, first_line

# RobustBench has these networks with the same layer names, for images of 3x32x32. It takes the
# normalisation from the file for the first two, and from the code for the others.
PREACT = ("preactresnet18", "preactresnet18-v2")  # of width 64 only
WIDE = ("wideresnet28-10", "wideresnet28-10-silu")


def write(folder: str | Path, out: str | Path, trust_code: bool = False) -> dict:
    """Write the network of the run in `folder` into the new folder `out`; returns the record.

    A line on stderr says which file is left out, and why. trust_code is as for advprune.load.
    Raises UserError if `out` exists, if the run is not finished, and if torch.export
    cannot take its network.
    """
    out = Path(out)
    files.check_new(out)
    model = layers.plain(weights.of_run(folder, trust_code)).eval()
    network = run.read_config(folder)["network"]
    classes = run.read_record(Path(folder) / "train.json", "classes")["classes"]
    made = contents(model, network, classes)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as hidden:
        place = Path(hidden) / out.name
        place.mkdir()
        for name, content in made.items():
            files.write(place / name, content)
        place.rename(out)
    print(f"{', '.join(made)}: {out}")
    return {"run": str(folder), "export": str(out), "files": list(made)}


def contents(model: nn.Module, network: dict, classes: list[str]) -> dict[str, bytes | str]:
    """The content of each file for this model, in eval mode and of PyTorch's own layers.

    network: what models.build took. Raises UserError if torch.export cannot take the model.
    """
    program = exported(model, network)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    made: dict[str, bytes | str] = {
        "model.safetensors": run.saved_weights(model), "model.pt2": buffer.getvalue()}
    try:
        made["model.onnx"] = as_onnx(program)
    except Exception as error:  # a package that is missing, or an operation that ONNX lacks
        distributed.say(f"there is no model.onnx ({first_line(error)}); it needs the "
                        "packages onnx and onnxscript")
    if state := robustbench_state(model, network):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        made["robustbench.pt"] = buffer.getvalue()
    else:
        distributed.say("there is no robustbench.pt, because RobustBench has no such network; "
                        "it has preactresnet18 of width 64 and wideresnet28-10, for images of "
                        "3x32x32")
    made["classes.json"] = json.dumps(classes, ensure_ascii=False) + "\n"
    made["README.md"] = readme(model, network, len(classes), list(made))
    return made


def exported(model: nn.Module, network: dict) -> torch.export.ExportedProgram:
    """The model as a program that takes images [B, C, H, W] of any B."""
    size = network["size"]
    images = torch.rand(2, network["channels"], size, size)
    try:
        program = torch.export.export(model, (images,),
                                      dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # of whatever a user's network does
        raise UserError(f"torch.export cannot take {network['name']} "
                        f"({first_line(error)}); use advprune.load instead") from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files and folders of this machine
    return program


def as_onnx(program: torch.export.ExportedProgram) -> bytes:
    """The same program in ONNX: `images` in, `logits` out."""
    made = torch.onnx.export(program, input_names=["images"], output_names=["logits"],
                             dynamic_shapes=({0: "batch"},), dynamo=True, verbose=False)
    return made.model_proto.SerializeToString()  # type: ignore[union-attr]


def robustbench_state(model: nn.Module, network: dict) -> dict[str, Tensor] | None:
    """The state dict for RobustBench's network; None if it has no such network."""
    name, width = network["name"], network["width"]
    if (name not in PREACT + WIDE or (network["channels"], network["size"]) != (3, 32)
            or (name in PREACT and width not in (None, 64))):
        return None
    state = dict(model.state_dict())
    if name in PREACT:
        for key, values in zip(("mu", "sigma"), models.normalisation(model), strict=True):
            state[key] = torch.tensor(values).view(1, -1, 1, 1).expand(1, 3, 1, 1).clone()
    return state


# --- the README.md

HEAD = """# {described}

It takes images, float32 [B, {channels}, {size}, {size}] with values in [0, 1], and gives logits
[B, {classes}]. Do not normalise the images: the network does what it needs.

| file | content |
|---|---|
| `model.safetensors` | the weights by the names of their layers, without the normalisation |
| `model.pt2` | the network as a program of torch.export |
| `classes.json` | the names of the classes, in the order of the logits |

Make an image file what the network was trained on, and classify it:

```python
import json

import torch
from PIL import Image, ImageOps
from torchvision import transforms

fit = transforms.Compose([transforms.Resize({size}), transforms.CenterCrop({size}),
                          transforms.ToTensor()])
image = fit(ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}"))
images = image[None]  # [1, {channels}, {size}, {size}]
network = torch.export.load("model.pt2").module()
logits = network(images)
with open("classes.json") as file:
    print(json.load(file)[logits.argmax(1).item()])
```
"""
ONNX = """
`model.onnx` is the same network:

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": images.numpy()})
```
"""
ROBUSTBENCH_HEAD = """
`robustbench.pt` has the weights for RobustBench's network:

```python
"""
PREACT_CODE = """import torch
from robustbench.model_zoo.architectures.resnet import {block}, PreActResNet


class Network(PreActResNet):
    def __init__(self):
        super().__init__({block}, [2, 2, 2, 2], num_classes={classes}, bn_before_fc=True)
        self.register_buffer("mu", torch.zeros(1, 3, 1, 1))
        self.register_buffer("sigma", torch.ones(1, 3, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)


network = Network()
"""
WIDE_CODE = """import torch
from robustbench.model_zoo.architectures.dm_wide_resnet import DMWideResNet

network = DMWideResNet(num_classes={classes}, depth=28, width={width}, mean={mean}, std={std},
                       activation_fn=torch.nn.{activation})
"""
ROBUSTBENCH_END = """network.load_state_dict(torch.load("robustbench.pt"))
network.eval()
```
"""


def readme(model: nn.Module, network: dict, classes: int, made: list[str]) -> str:
    """The README.md beside the files `made`."""
    name, channels = network["name"], network["channels"]
    mean, std = ([round(value, 6) for value in values * (channels // len(values))]
                 for values in models.normalisation(model))
    filled = dict(
        described=models.described(own_code.short(name), model), classes=classes,
        channels=channels, size=network["size"], mode="L" if channels == 1 else "RGB",
        width=network["width"] or 10,
        block="PreActBlockV2" if name.endswith("v2") else "PreActBlock",
        mean=mean, std=std, activation="SiLU" if name.endswith("silu") else "ReLU")
    text = HEAD.format(**filled)
    if "model.onnx" in made:
        text += ONNX
    if "robustbench.pt" in made:
        code = PREACT_CODE if name in PREACT else WIDE_CODE
        text += ROBUSTBENCH_HEAD + code.format(**filled) + ROBUSTBENCH_END
    return text
