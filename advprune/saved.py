"""The network of a finished run."""
import hashlib
from pathlib import Path
from typing import Any

from torch import nn

from advprune import custom, models, runs
from advprune.cli import UserError


def from_run(run: str | Path, config: dict, trust_code: bool = False) -> nn.Module:
    """The finished network of a run directory, given its config.json.

    trust_code allows a network whose code only the run itself still has (custom.py).
    """
    network, file = dict(config["args"]["network"]), Path(run) / "model.safetensors"
    model = models.build(**network, code=code_of(run, network, trust_code))
    models.load_weights(model, file)
    recorded = runs.record(run).get("weights")
    if recorded and fingerprint(model) != recorded:
        raise UserError(f"{file} is not what the run wrote: its checksum differs from that in "
                        "train.json")
    return model


def code_of(run: str | Path | None, network: dict[str, Any], trust_code: bool) -> str | None:
    """The source of the network FILE.py:NAME of a run, or of a new one; None for other names."""
    if not custom.is_file(network["name"]):
        return None
    return (custom.source_of_run(run, network, trust_code) if run
            else custom.source(network["name"]))


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of the model's weights."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()
