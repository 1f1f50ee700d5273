"""Batches too small for batch normalisation."""
import killing
import pytest
from conftest import refused

import train

# Its last features are 1x1: a batch of one image would have one value for each channel.
SMALL = ["--dataset", "synthetic", "--epochs", "2", "--batch-size", "32", "--model",
         "shufflenet_v2_x0_5"]


@pytest.mark.parametrize("flags", [
    ["--limit", "33"], ["--limit", "66", "--prune", "random", "--p", "0.5", "--epoch", "1"]])
def test_a_last_batch_of_one_image(flags, tmp_path):
    record = train.main([*SMALL, *flags, "--out", str(tmp_path / "run")])
    assert record["n_kept"] == 33


@pytest.mark.parametrize(("model", "images", "code"), [
    ("mnist-net", 33, 0), ("mnist-net", 1, 2), ("preactresnet18", 35, 0)])
def test_no_process_is_left_without_images(model, images, code, forks, tmp_path):
    command = killing.Command(forks, "train", tmp_path / "output", processes=2)
    command.wait(command.start(
        "--dataset", "synthetic", "--limit", str(images), "--epochs", "1", "--batch-size", "32",
        "--model", model, "--width", "1", "--out", str(tmp_path / "run")), code)
    assert (tmp_path / "run/train.json").exists() == (code == 0)


@pytest.mark.parametrize(("flags", "why"), [
    (["--limit", "1"], "an epoch has 1"),
    (["--limit", "10", "--prune", "high", "--p", "0.9", "--epoch", "1"], "an epoch has 1"),
    (["--limit", "40", "--batch-size", "1"], "a batch has 1"),
])
def test_refused_before_the_work(flags, why, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.Training, "epoch", None)
    assert why in refused(train.main, [*SMALL, *flags, "--out", "run"], capsys)
    assert not list(tmp_path.iterdir())
