"""The benchmark measures what it says, at sizes that take no time."""
import json

import pytest
import torch

import benchmark
from advprune import ops


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "BATCHES", [(4, 1, 6, 6)])
    monkeypatch.setattr(benchmark, "SELECTIONS", [1000])
    whole = benchmark.median_us
    monkeypatch.setattr(benchmark, "median_us", lambda call, device: whole(call, device, 0.01))


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
    start = rows["rs_start"]  # float32 in and out: 8 bytes an element
    assert start["GB/s"] == pytest.approx(8 * 4 * 36 / start["us"] / 1e3)


def test_alternatives_compute_the_same():
    x, ids = torch.rand(50, 3, 8, 8), torch.arange(50)
    grad = torch.randn_like(x)
    start = ops.rs_start(x, ids, benchmark.EPS, 0, 0)
    ours = ops.fgsm_step(x, grad, ids, benchmark.EPS, benchmark.ALPHA, 0, 0)
    torch.testing.assert_close(benchmark.eager_step(x, start, grad), ours, rtol=0, atol=1e-6)


def test_bad_use(small, tmp_path, capsys):
    (tmp_path / "there.json").write_text("kept")
    for flags in (["--json", "there.json"], ["ablation", "--figure", "f.png"], ["nosuch"]):
        with pytest.raises(SystemExit) as stopped:
            benchmark.main(flags)
        assert stopped.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert (tmp_path / "there.json").read_text() == "kept"
