"""Batches too small for batch normalisation, and images too small for a network."""
import numpy as np
import pytest
import torch

import train
from advprune import data

SMALL = ["--dataset", "synthetic", "--epochs", "2", "--batch-size", "32"]
NETS = (["--model", "preactresnet18", "--width", "1"], ["--model", "resnet18"])


@pytest.mark.parametrize("images", [0, 1, 2, 31, 32, 33, 34, 63, 64, 65, 97, 500])
@pytest.mark.parametrize("smallest", [1, 2, 4])
def test_only_a_remainder_that_is_too_small_is_merged(images, smallest):
    plain = [len(part) for part in torch.arange(images).split(32)] if images else []
    sizes = data.batch_sizes(images, 32, smallest)
    assert sum(sizes) == images
    if images % 32 >= smallest or images % 32 == 0 or images < 32:
        assert sizes == plain
    else:
        assert sizes == [*plain[:-2], 32 + images % 32]


@pytest.mark.parametrize("extra", [None, 0.5])
@pytest.mark.parametrize("n", [33, 34, 60])
def test_batches_of_a_larger_remainder_are_what_they_were(n, extra):
    loaded = data.load("synthetic", limit=n)
    if extra:
        loaded.original = n // 2
    kept = torch.arange(n)
    images = loaded.epoch_size(n)
    if extra is None:
        before = data.shuffled(kept, 0, 1).split(16)
    else:
        sizes = [min(16, images - i) for i in range(0, images, 16)]
        before = data.mixed_batches(kept[:n // 2], kept[n // 2:], extra, sizes, 0, 1)
    now = loaded.batches(kept, 16, 0, 1, extra, 2)
    assert torch.equal(torch.cat(list(now)), torch.cat(list(before))) or images % 16 == 1
    assert min(map(len, now)) >= 2
    if images % 16 != 1:
        assert list(map(len, now)) == list(map(len, before))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("flags", [
    ["--limit", "33"], ["--limit", "66", "--prune", "random", "--p", "0.5", "--epoch", "1"]])
def test_a_last_batch_of_one_image(net, flags, tmp_path):
    record = train.main([*SMALL, *flags, *net, "--out", str(tmp_path / "run")])
    assert record["n_kept"] == 33


def test_a_last_batch_of_one_image_with_extra_data(tmp_path):
    loaded = data.load("synthetic", limit=40)
    np.savez(tmp_path / "extra.npz", image=loaded.images[:20, 0].numpy(),
             label=loaded.labels[:20].numpy())
    train.main([*SMALL, "--limit", "33", "--extra-data", "extra.npz", *NETS[1], "--out", "run"])


@pytest.mark.parametrize(("net", "flags", "why"), [
    (NETS[1], ["--limit", "1"], "an epoch has 1"),
    (NETS[1], ["--limit", "10", "--prune", "high", "--p", "0.9", "--epoch", "1"],
     "an epoch has 1"),
    (NETS[1], ["--limit", "40", "--batch-size", "1"], "a batch has 1"),
    (["--model", "vgg11"], [], "does not take images of 1x28x28"),
    (["--model", "alexnet"], [], "does not take images of 1x28x28"),
])
def test_refused_before_the_work(net, flags, why, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train.Training, "epoch", None)
    with pytest.raises(SystemExit) as stopped:
        train.main([*SMALL, *flags, *net, "--out", "run"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(said) == 1
    assert why in said[0]
    assert not list(tmp_path.iterdir())
