"""The benchmark measures what it says, at sizes that take no time."""
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from statistics import median

import pytest
import torch
from conftest import ROOT, refused
from torch import nn

import benchmark
from advprune import cli, data, layers, ops
from benchmarks import ablation, kernels, layouts, scale, timing

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(kernels, "BATCHES", [(4, 3, 6, 6)])
    monkeypatch.setattr(kernels, "NORMS", [(4, 16, 6, 6)])
    monkeypatch.setattr(kernels, "SELECTIONS", [1000])
    whole = kernels.median_us
    monkeypatch.setattr(kernels, "median_us", lambda call, device: whole(call, device, 0.01))


def test_kernels_record(small, tmp_path, capsys):
    flags = ["--json", "k.json", "--figure", "k.png", "--device", "cpu"]
    record = benchmark.main(["kernels", *flags])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
    assert json.loads((tmp_path / "k.json").read_text()) == record
    assert (tmp_path / "k.png").stat().st_size > 5000
    rows = {row["operator"]: row for row in record["rows"]}
    assert rows["rs_start + fgsm_step"].keys() >= {"us", "GB/s", "of copy", "eager", "compile"}
    assert rows["select_kept"].keys() >= {"topk", "sort", "argpartition"}
    assert all(value > 0 for row in record["rows"] for value in list(row.values())[1:])
    for layout in ("", ", channels last"):  # float32 in and out: 8 bytes an element
        start, step = rows[f"rs_start{layout}"], rows[f"fgsm_step{layout}"]
        assert start["GB/s"] == pytest.approx(8 * 4 * 108 / start["us"] / 1e3)
        assert step["GB/s"] == pytest.approx(12 * 4 * 108 / step["us"] / 1e3)
    for name in ("batch_norm_relu", "its gradient"):  # bfloat16 has half as many bytes
        full, half = (rows[f"{name}, {kind}, 16 channels"] for kind in ("float32", "bfloat16"))
        assert full["GB/s"] * full["us"] == pytest.approx(2 * half["GB/s"] * half["us"])
        assert "eager" in full


def test_both_layouts_reach_the_kernels(small, monkeypatch):
    seen, whole = set(), ops.rs_start

    def start(x, *args):
        seen.add((x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)))
        return whole(x, *args)

    monkeypatch.setattr(kernels.ops, "rs_start", start)
    assert len(list(kernels.rows_of_batches(CPU))) == 7
    assert seen == {(True, False), (False, True)}


def test_alternatives_compute_the_same():
    x, ids = torch.rand(50, 3, 8, 8), torch.arange(50)
    grad = torch.randn_like(x)
    start = ops.rs_start(x, ids, kernels.EPS, 0, 0)
    ours = ops.fgsm_step(x, grad, ids, kernels.EPS, kernels.ALPHA, 0, 0)
    torch.testing.assert_close(kernels.eager_step(x, start, grad), ours, rtol=0, atol=1e-6)


def test_the_alternative_gradient_is_the_same():
    weight, grad = torch.randn(6, 1, 4, 4), torch.randn(5, 6, 14, 13)
    ours = layers.conv_input_grad(grad, weight, 28, 27, 2, 1)
    with ablation.without(["conv_input_grad"]):
        assert layers.conv_input_grad.__self__.__class__ is ablation.Eager
        theirs = layers.conv_input_grad(grad, weight, 28, 27, 2, 1)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_without_its_kernel_batch_norm_is_pytorchs():
    norm = layers.speed_up(nn.BatchNorm2d(4), torch.rand(2, 4, 3, 3))
    x = torch.randn(3, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    ours = layers.batch_norm_relu(norm, x)
    with ablation.without(["takes"]):
        assert isinstance(norm, layers.FastBatchNorm2d) == (ops.KERNELS != "reference")
        theirs = layers.batch_norm_relu(norm, x)
    assert "ReluBackward" in type(theirs.grad_fn).__name__
    assert "ReluBackward" not in type(ours.grad_fn).__name__ or ops.KERNELS == "reference"
    torch.testing.assert_close(theirs, ours)


def test_ablation_record(tmp_path):
    record = benchmark.main(["ablation", "--dataset", "digits", "--limit", "300", "--rounds", "1",
                             "--device", "cpu", "--json", "a.json"])
    assert json.loads((tmp_path / "a.json").read_text()) == record
    assert [row["variant"] for row in record["rows"]] == [*ablation.VARIANTS, "network alone"]
    assert (record["dataset"], record["examples"], record["rounds"]) == ("digits", 300, 1)
    first = record["rows"][0]
    for row in record["rows"]:
        for what in ("training", "scoring"):
            assert row[f"{what}_ratio"] == pytest.approx(row[what] / first[what])


def test_bad_use(small, tmp_path, capsys):
    (tmp_path / "there.json").write_text("kept")
    for flags in (["--json", "there.json"], ["ablation", "--figure", "f.png"], ["nosuch"],
                  ["kernels", "--dataset", "digits"], ["layouts", "--limit", "3"],
                  ["training", "--epochs", "3"], ["scale", "--rounds", "2"],
                  ["scale", "--epochs", "1"], ["machine", "--precision", "bf16"],
                  ["scale", "--json", "same", "--figure", "same"],
                  ["versions"], ["versions", "--against", "."]):
        refused(benchmark.main, flags, capsys)
    assert (tmp_path / "there.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


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


# --- scale

def test_line_is_the_least_squares_line():
    assert scale.line([10, 20, 40], [7, 12, 22]) == pytest.approx((2, 0.5))
    intercept, slope = scale.line([0, 1, 2, 3], [1, 0, 3, 2])  # by hand
    assert (intercept, slope) == pytest.approx((0.6, 0.6))


def test_deviation_is_from_proportional_to_the_examples():
    rows = [{"examples": 400, "epoch_seconds": [90, 2, 4, 2]},  # a machine of changing speed
            {"examples": 250, "epoch_seconds": [1, 1, 2, 30]},
            {"examples": 128, "epoch_seconds": [80, 0.5, 0.8, 0.4]}]
    scale.from_ratios(rows, 1)
    assert [row["seconds"] for row in rows] == pytest.approx([8, 2 * (1 + 1.5), 2 * (1 + 0.6)])
    assert [row["deviation"] for row in rows] == pytest.approx([0, 0, 0.25])


def test_scale_record(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SIZES", (0.5, 1.0))
    record = benchmark.main(["scale", "--dataset", "digits", "--limit", "200", "--epochs", "4",
                             "--width", "4", "--json", "s.json", "--figure", "s.png"])
    assert json.loads((tmp_path / "s.json").read_text()) == record
    assert (tmp_path / "s.png").stat().st_size > 5000
    assert [row["p"] for row in record["rows"]] == list(scale.SHARES)
    assert (record["epochs"], record["prune_epoch"], record["width"]) == (4, 1, 4)
    for row in record["rows"]:
        assert row["examples"] == 200 + 3 * (200 - round(row["p"] * 200))
        assert row["train_seconds"] == pytest.approx(sum(row["epoch_seconds"]), rel=1e-6)
        assert row["seconds"] > 0
        assert len(row["epoch_seconds"]) == 4 and row["guard_seconds"] > 0
        assert (row["prune_seconds"] > 0) == (row["p"] > 0)
    assert record["slope"] > 0
    assert [row["examples"] for row in record["memory"]] == [100, 200]
    for row in record["memory"]:
        assert row["data"] == row["examples"] * (28 * 28 + 8) / 2**20
        assert row["peak"] > row["before"] > 20


def test_the_runs_of_scale_take_turns(monkeypatch):
    order, epoch = [], scale.train.Training.epoch

    def noted(training, number, bar):
        order.append((number, training.args.p, len(training.kept)))
        epoch(training, number, bar)

    monkeypatch.setattr(scale.train.Training, "epoch", noted)
    monkeypatch.setattr(scale, "memory", lambda *_: [])
    benchmark.main(["scale", "--dataset", "synthetic", "--limit", "50", "--epochs", "2"])
    order = order[1:]  # the first warms up
    assert [number for number, _, _ in order] == [0] * 5 + [1] * 5
    assert [p for _, p, _ in order[:5]] == [0, 0.2, 0.4, 0.6, 0.8]
    assert [(p, kept) for _, p, kept in order[5:]] == [
        (0.2, 40), (0.4, 30), (0.6, 20), (0.8, 10), (0, 50)]


def test_scale_needs_an_example_that_is_kept(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["scale", "--dataset", "digits", "--limit", "2", "--epochs", "2"])
    assert "--limit" in capsys.readouterr().err


def test_peak_memory_is_that_of_this_process():
    code = ("import torch; from benchmarks.memory import peak; cpu = torch.device('cpu'); "
            "print(peak(cpu)); torch.ones(300, 2**18); print(peak(cpu))")  # 300 MiB, freed again
    block = torch.ones(1000, 2**18)  # of the process that starts it
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, check=True,
                          stdout=subprocess.PIPE)
    before, after = map(float, done.stdout.split())
    assert before + 290 < after < before + 320 and before < block.nbytes / 2**20


# --- layouts

def test_layouts_record(monkeypatch, tmp_path):
    monkeypatch.setattr(layouts, "NETWORKS", [("mnist-net", 2, 1, 28, 4),
                                              ("preactresnet18", 1, 3, 32, 4)])
    monkeypatch.setattr(layouts, "SECONDS", 0)
    seen, whole = set(), layouts.step

    def step(model, opt, x, y, autocast):
        seen.add((x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last),
                  model.conv1.weight.is_contiguous(), autocast._enabled)
                 if x.shape[1] == 3 else None)
        before = [p.detach().clone() for p in model.parameters()]
        whole(model, opt, x, y, autocast)
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    monkeypatch.setattr(layouts, "step", step)
    record = benchmark.main(["layouts", "--rounds", "1", "--device", "cpu", "--json", "l.json"])
    assert json.loads((tmp_path / "l.json").read_text()) == record
    ways = [(layout, p) for layout in ("contiguous", "channels-last")
            for p in ("fp32", "bf16")]
    assert [(row["layout"], row["precision"]) for row in record["rows"]] == [
        (layouts.THEIRS, "fp32"), *ways] * 2
    assert seen - {None} == {(layout == "contiguous", layout != "contiguous",
                              layout == "contiguous", p == "bf16") for layout, p in ways}
    for row in record["rows"]:
        first = record["rows"][0 if row["model"] == "mnist-net" else 1 + len(ways)]
        assert row["ratio"] == pytest.approx(row["images_per_second"]
                                             / first["images_per_second"])


def test_digits_are_the_default(monkeypatch):
    names = []
    monkeypatch.setattr(data, "load", lambda name, *_, **__: names.append(name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        benchmark.main(["training"])
    assert names == ["digits"]


# --- what PyTorch alone does

def of_this_process(*_):
    """(its number, page faults of a tensor of 64 MiB)"""
    faults = []
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return os.getpid(), median(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is about glibc's malloc")
def test_freed_memory_is_kept_here_but_not_apart():
    cli.device("cpu")
    with timing.apart(of_this_process) as other:
        process, faults = other()
        assert other()[0] == process != os.getpid()
    assert faults > 2000 and of_this_process()[1] < 100


def test_pytorchs_way_has_its_own_layers():
    network = ("mnist-net", 2, 1, 28, 4)
    theirs, ours = (layouts.step_of(network, layout, "fp32", CPU).__closure__
                    for layout in (layouts.THEIRS, "channels-last"))
    kinds = [{type(layer) for cell in cells if isinstance(cell.cell_contents, nn.Module)
              for layer in cell.cell_contents.modules()} for cells in (theirs, ours)]
    assert nn.Conv2d in kinds[0] and layers.GreyConv2d not in kinds[0]
    assert layers.GreyConv2d in kinds[1]


# --- versions

def test_versions_compares_bits_in_a_process_of_each_checkout(tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(ROOT / "advprune", other / "advprune")
    with open(other / "advprune/ops.py", "a") as file:
        file.write("\n\ndef rs_start(x, *others):\n    import time\n    time.sleep(0.05)\n"
                   "    return x.clone()\n")
    record = benchmark.main(["versions", "--against", str(other), "--rounds", "1"])
    differ = {row["operator"] for row in record["rows"] if not row["same_bits"]}
    assert differ == {"rs_start", "rs_start, channels last"}
    smallest = record["rows"][0]  # ours takes less than a millisecond, of the other's 50
    assert smallest["operator"] == "rs_start" and smallest["ratio"] < 0.5
    for build in (other / "advprune").glob("*.so"):
        build.unlink()
    if ops.KERNELS != "reference":
        assert "uses reference kernels" in says_and_ends(other, capsys)
    (other / "advprune/ops.py").write_text("import nosuch")
    assert "could not be called" in says_and_ends(other, capsys)


def says_and_ends(other, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["versions", "--against", str(other), "--rounds", "1"])
    assert stopped.value.code == 2
    return capsys.readouterr().err
