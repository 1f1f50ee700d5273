"""training: the parts of an epoch, their floor, and fast_adversarial's loop."""
import dataclasses
import json
from contextlib import nullcontext

import pytest
import torch

import train
from advprune import ops
from benchmarks import __main__ as benchmark
from benchmarks import fast_adversarial, timing, training, workload

CPU = torch.device("cpu")
PROFILE = ["training", "--dataset", "synthetic", "--limit", "330", "--device", "cpu"]


def begun(*flags):
    return workload.begun(["--dataset", "synthetic", "--limit", "70", *flags], CPU)


def test_training_record(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "apart", nullcontext)
    record = benchmark.main([*PROFILE, "--rounds", "3", "--json", "t.json"])
    assert json.loads((tmp_path / "t.json").read_text()) == record
    rows = record["rows"]
    assert [row["part"] for row in rows] == [*training.PARTS, "the rest"]
    assert all(row["seconds"] > 0 and row["calls"] == 11 for row in rows[:-1])
    assert sum(row["seconds"] for row in rows) == pytest.approx(record["epoch_seconds"])
    assert sum(row["floor"] for row in rows) == pytest.approx(record["floor_seconds"])
    assert record["floor_seconds"] > 0  # on a busy machine it may exceed the epoch
    assert record["share_of_floor"] == record["floor_seconds"] / record["epoch_seconds"]
    low, high = record["share_of_floor_range"]
    assert 0 < low <= high
    assert record["guard_seconds"] > 0
    assert record["times_reference"] == pytest.approx(
        record["images_per_second"] / record["reference_images_per_second"])
    assert (record["examples"], record["batch_size"], record["rounds"]) == (330, 32, 3)
    assert record["fastest"]["optimiser"] in ("default", "foreach", "fused")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_floor_makes_passes_of_the_same_shapes_in_the_same_precision(precision, monkeypatch):
    run = begun("--precision", precision)
    batches, seen = run.kept.split(32), {"epoch": [], "floor": []}
    bottom = training.Floor(run, batches)
    models = [("epoch", run.model)] + [("floor", m) for m, _ in bottom.networks.values()]
    for where, model in models:
        model.register_forward_hook(lambda module, inputs, out, where=where: seen[where].append(
            (tuple(inputs[0].shape), inputs[0].requires_grad, out.dtype, module.training,
             next(module.parameters()).requires_grad)))
    monkeypatch.setattr(run.guard, "measure", lambda model: (0.0, 0.0))
    run.epoch(0, training.tqdm(disable=True))
    clocks = bottom.round()
    assert len(seen["epoch"]) == 6
    assert sorted(seen["floor"], key=str) == sorted(
        seen["epoch"] * len(bottom.networks), key=str)
    _, chosen, calls = bottom.choose([clocks])
    assert calls == dict.fromkeys(training.PARTS, 3)
    assert chosen["attack forward"] == chosen["update backward"] in bottom.networks


def test_another_pass_in_training_is_not_compared_with_the_same_floor(monkeypatch):
    whole = train.Training.adversarial

    def twice(self, x, y, ids, epoch):
        whole(self, x, y, ids, epoch)
        return whole(self, x, y, ids, epoch)

    monkeypatch.setattr(training, "apart", nullcontext)
    monkeypatch.setattr(train.Training, "adversarial", twice)
    with pytest.raises(RuntimeError, match="attack forward: 22 times in an epoch and 11"):
        benchmark.main([*PROFILE, "--rounds", "1"])


def test_a_part_within_a_part_counts_once(monkeypatch):
    now = iter([0, 10, 11, 100, 107, 109])  # guard, step, step
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    clock = timing.Clock(CPU)
    step = clock.timed("step", lambda value: value + 1)
    with clock.part("guard"):
        assert step(1) == 2
    assert step(2) == 3
    assert step(3) == 4
    assert clock.seconds == {"guard": 10, "step": 89 + 2}
    assert clock.calls == {"guard": 1, "step": 2}


# --- fast_adversarial's loop

@pytest.mark.parametrize("clip_start", [False, True])
def test_the_loop_makes_our_update_at_equal_noise(clip_start, monkeypatch):
    run = begun("--lr", "0.01", "--optimizer", "sgd")
    run.settings = dataclasses.replace(run.settings, clip_start=clip_start)
    ids = run.kept[:40]
    x, y = run.dataset.batch(ids, 0, 0), run.dataset.labels[ids]
    loop = fast_adversarial.Loop(run)
    monkeypatch.setattr(fast_adversarial, "noise",
                        lambda x, eps: ops.rs_start(x, ids, eps, run.settings.seed, 0) - x)
    before = [p.detach().clone() for p in loop.model.parameters()]
    loss, logits = loop.step(x, y, lr=0.01)

    run.model.train()
    losses, ours = run.losses(x, y, ids, 0)
    torch.testing.assert_close(logits, ours)
    torch.testing.assert_close(loss, losses.mean())
    assert not torch.allclose(logits, run.model(x), atol=1e-3)
    losses.mean().backward()
    for group in run.opt.param_groups:
        group["lr"] = 0.01
    run.opt.step()
    for old, theirs, mine in zip(before, loop.model.parameters(), run.model.parameters(),
                                 strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)
        assert not torch.equal(old, theirs)


def test_the_loop_reads_every_image_once():
    run = begun()
    seen = [(x, y) for x, y in fast_adversarial.loader(run)]
    x, y = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert [len(labels) for _, labels in seen] == [32, 32, 6]
    ours = dict(zip(map(bytes, run.dataset.images.numpy()), run.dataset.labels, strict=True))
    theirs = dict(zip(map(bytes, (x * 255).round().to(torch.uint8).numpy()), y, strict=True))
    assert len(theirs) == 70 and theirs == ours
