"""kernels, ablation, layouts: they measure what they say, at sizes that take no time."""
import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import refused

from advprune import layers, models, ops
from benchmarks import __main__ as benchmark
from benchmarks import ablation, kernels, layouts, tables

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    small = {4: (4, 16, 6, 6), 2: (4, 3), 1: (1000,)}
    for name, operator in kernels.OPERATORS.items():
        shape = (4, 1, 8, 8) if name == "conv_input_grad" else small[len(operator.shapes[0])]
        monkeypatch.setitem(kernels.OPERATORS, name, operator._replace(shapes=(shape,)))
    monkeypatch.setattr(kernels, "AT_LEAST", 0)
    monkeypatch.setattr(torch, "compile", lambda call: call)


def test_kernels_record(small, tmp_path, capsys):
    flags = ["--json", "k.json", "--rounds", "4", "--device", "cpu"]
    record = benchmark.main(["kernels", *flags])
    assert record["command"] == f"python -m benchmarks kernels {' '.join(flags)}"
    assert json.loads((tmp_path / "k.json").read_text()) == record
    rows = {(row["operator"], row["layout"]): row for row in record["rows"]}
    assert {name for name, _ in rows} == set(kernels.OPERATORS)
    printed = capsys.readouterr().out.splitlines()
    for row, line in zip(record["rows"], printed[2:], strict=False):
        assert line.startswith(row["operator"])
        assert all(name in line for name in row["others"])
    for layout in kernels.LAYOUTS:  # float32 in and out: 8 bytes an element
        start, step = rows["rs_start", layout], rows["fgsm_step", layout]
        assert start["GB/s"] == pytest.approx(8 * 4 * 576 / start["us"] / 1e3)
        assert step["GB/s"] == pytest.approx(12 * 4 * 576 / step["us"] / 1e3)
    assert rows["select_kept", "contiguous"]["others"].keys() == {"topk", "sort", "argpartition"}
    for row in record["rows"]:
        assert row["rounds"] == 4 and row["us"] > 0 <= row["spread"]
        assert all(other["low"] <= other["times"] <= other["high"]
                   for other in row["others"].values())


def test_rows_of_an_operator_a_shape_and_a_type(small):
    flags = ["kernels", "--operator", "rs_start", "--shape", "3,2,5,7", "--dtype", "bf16"]
    rows = benchmark.main([*flags, "--rounds", "3", "--device", "cpu"])["rows"]
    assert [(row["operator"], row["shape"], row["dtype"], row["layout"]) for row in rows] == [
        ("rs_start", [3, 2, 5, 7], "bf16", layout) for layout in kernels.LAYOUTS]


@pytest.mark.parametrize("flags", [
    ["--operator", "augment", "--dtype", "bf16"], ["--operator", "select_kept", "--shape", "3,3"],
    ["--shape", "1,2,3"], ["--shape", "0,3,4,4"], ["--shape", "x"], ["--operator", "conv"],
    ["--operator", "conv_input_grad", "--shape", "2,3,8,8"], ["--shape", "9" * 20],
    ["--shape", f"{2**20},{2**20}"], ["--operator", "select_kept", "--shape", "1"]])
def test_what_no_operator_takes_is_one_sentence(flags, capsys):
    refused(benchmark.main, ["kernels", *flags, "--device", "cpu"], capsys)


@pytest.mark.parametrize("shape", ["1,1,1,1", "2,3,8,8", "1,1,2,1", "3,1,4,1", "1,1", "3"])
def test_a_small_shape_gives_the_rows_of_those_that_take_it(small, shape, capsys):
    flags = ["--shape", shape, "--rounds", "1", "--device", "cpu"]
    assert benchmark.main(["kernels", *flags])["rows"]
    assert "%" not in capsys.readouterr().out  # one round has no spread


def test_a_difference_within_the_spread_is_none(monkeypatch):
    times = {"operator": [10, 10, 10], "copy": [5, 5, 5], "eager": [9, 12, 11],
             "compile": [20, 30, 40]}
    monkeypatch.setattr(kernels, "in_turn", lambda *_: {k: np.array(v) for k, v in times.items()})
    row = kernels.row_of("cross_entropy_scores", (4, 3), "fp32", "contiguous", CPU, 3, lambda f: f)
    assert kernels.words(row)[-1] == "eager 1.1 (no clear difference), compile 3"


def test_calls_take_turns():
    calls = []
    found = kernels.in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, 3)
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    assert calls[:4] == ["a", "a", "b", "b"]  # it warms up, and reads the time of one call
    turns = [name for name, before in zip(calls[4:], ["", *calls[4:]], strict=False)
             if name != before]
    assert turns == ["a", "b"] * 3


def test_alternatives_compute_the_same():
    x, ids = torch.rand(50, 3, 8, 8), torch.arange(50)
    grad = torch.randn_like(x)
    start = ops.rs_start(x, ids, kernels.EPS, 0, 0)
    ours = ops.fgsm_step(x, grad, ids, kernels.EPS, kernels.ALPHA, 0, 0)
    torch.testing.assert_close(kernels.eager_step(x, start, grad), ours, rtol=0, atol=1e-6)


# --- ablation

@pytest.mark.parametrize("name", ablation.LAYERS)
def test_without_a_fast_layer_there_is_pytorchs(name):
    torch.manual_seed(0)
    kind, method, _ = ablation.LAYERS[name]
    network, x = (("mnist-net", torch.rand(3, 1, 28, 28)) if name != "batch_norm_relu"
                  else ("preactresnet18", torch.rand(3, 3, 32, 32)))
    width = {"mnist-net": 16, "preactresnet18": 4}[network]
    model, fast = models.build(network, x.shape[1], width=width), getattr(kind, method)
    if not any(isinstance(layer, kind) for layer in model.modules()):
        pytest.skip("this layer is for built kernels, or for other CPUs")
    ours = gradients(model, x)
    with ablation.without([name]):
        assert getattr(kind, method) is not fast
        theirs = gradients(model, x)
    assert getattr(kind, method) is fast
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=5e-4)


def gradients(model, x):
    """Logits, and the gradients of the images and of all weights."""
    x = x.clone().requires_grad_()
    logits = model.train()(x)
    return [logits, *torch.autograd.grad(logits.square().mean(), [x, *model.parameters()])]


def test_ablation_record(tmp_path):
    record = benchmark.main(["ablation", "--dataset", "digits", "--limit", "64", "--rounds", "1",
                             "--device", "cpu", "--json", "a.json"])
    assert json.loads((tmp_path / "a.json").read_text()) == record
    names = ["all kernels", *(f"without {name}" for name in (
        "rs_start, fgsm_step", "augment", "cross_entropy_scores", "select_kept",
        "conv_input_grad")), "without DnnLinear", "without FastFlatten", "no kernel",
        "network alone"]
    if not layers.ONEDNN:
        names.remove("without DnnLinear")
    assert [row["variant"] for row in record["rows"]] == names
    assert (record["dataset"], record["examples"], record["rounds"]) == ("digits", 64, 1)
    first = record["rows"][0]
    for row in record["rows"]:
        for what in ("training", "scoring"):
            assert row[f"{what}_ratio"] == pytest.approx(row[what] / first[what])


# --- layouts

def test_layouts_record(monkeypatch, tmp_path):
    monkeypatch.setattr(layouts, "NETWORKS", [("mnist-net", 2, 1, 28, 4),
                                              ("preactresnet18", 1, 3, 32, 4)])
    monkeypatch.setattr(layouts, "SECONDS", 0)
    monkeypatch.setattr(layouts, "apart", nullcontext)
    seen, whole = set(), layouts.step

    def step(model, opt, x, y, precision):
        if x.shape[1] == 3:
            seen.add((x.is_contiguous(memory_format=torch.channels_last),
                      model.conv1.weight.is_contiguous(), precision))
        before = [p.detach().clone() for p in model.parameters()]
        whole(model, opt, x, y, precision)
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    monkeypatch.setattr(layouts, "step", step)
    record = benchmark.main(["layouts", "--rounds", "1", "--device", "cpu", "--json", "l.json"])
    assert json.loads((tmp_path / "l.json").read_text()) == record
    ways = [(layout, p) for layout in ("contiguous", "channels-last")
            for p in ("fp32", "bf16")]
    assert [(row["layout"], row["precision"]) for row in record["rows"]] == [
        (layouts.THEIRS, "fp32"), *ways] * 2
    assert seen == {(layout != "contiguous", layout == "contiguous", p) for layout, p in ways}
    for row in record["rows"]:
        first = record["rows"][0 if row["model"] == "mnist-net" else 1 + len(ways)]
        assert row["ratio"] == pytest.approx(row["images_per_second"]
                                             / first["images_per_second"])
    assert "| preactresnet18 1 | 3x32x32 |" in tables.layouts(record)


# --- the command line

def test_bad_use(small, tmp_path, capsys):
    (tmp_path / "there.json").write_text("kept")
    for flags in (["--json", "there.json"], ["nosuch"],
                  ["kernels", "--dataset", "digits"], ["layouts", "--limit", "3"],
                  ["training", "--epochs", "3"], ["scale", "--rounds", "2"],
                  ["scale", "--epochs", "1"],
                  ["scale", "--precision", "tf32", "--device", "cpu"]):
        refused(benchmark.main, flags, capsys)
    assert (tmp_path / "there.json").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]
