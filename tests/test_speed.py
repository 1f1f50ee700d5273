"""docs/speed.md says what the records of benchmark.py say, or that there is none yet."""
import json
import re

import numpy as np
import pytest
from conftest import ROOT

import benchmark
from advprune import render, speed
from benchmarks import attack, layouts, scale


@pytest.fixture
def pages(tmp_path):
    """A folder with docs/speed.md and nothing measured."""
    for name in ("docs", "results", "figures"):
        (tmp_path / name).mkdir()
    (tmp_path / "docs/speed.md").write_text((ROOT / "docs/speed.md").read_text())
    return tmp_path


@pytest.fixture
def no_pictures_of_others(monkeypatch):
    monkeypatch.setattr(render, "FIGURES", speed.FIGURES)


def test_what_is_not_measured_says_how_to(pages, no_pictures_of_others):
    render.render(pages)
    text = (pages / "docs/speed.md").read_text()
    said = re.findall(r"<!-- render: \w+ -->\nNot yet measured: `python (benchmark.*)`\.\n", text)
    assert [line.split()[1] for line in said] == ["training", "scale", "layouts", "jobs", "attack"]
    for line in said:
        benchmark.flags().parse_args(line.split()[1:])
        assert re.search(r"--json results/cpu-[\w-]+\.json$", line)
    assert not list((pages / "figures").iterdir())


def test_the_page_has_the_numbers_of_the_records(pages, no_pictures_of_others, monkeypatch):
    monkeypatch.setattr(scale, "memory", lambda *_: [
        {"examples": 50, "data": 1.25, "before": 300.0, "peak": 432.1}])
    monkeypatch.setattr(layouts, "NETWORKS", [("mnist-net", 2, 1, 28, 4)])
    monkeypatch.setattr(layouts, "SECONDS", 0)
    few = ["--dataset", "digits", "--limit", "40"]
    profile = benchmark.main(["training", *few, "--rounds", "1",
                              "--json", "results/cpu-training-digits.json"])
    scaled = benchmark.main(["scale", *few, "--epochs", "2", "--json", "results/cpu-scale.json"])
    sized = benchmark.main(["layouts", "--rounds", "1", "--json", "results/cpu-layouts.json"])
    written = render.render(pages)
    assert written == ["docs/speed.md", "figures/scale.png", "report.html"]
    assert (pages / "figures/scale.png").stat().st_size > 5000
    text = (pages / "docs/speed.md").read_text()
    assert re.findall(r"measured: `python benchmark.py (\w+)", text) == ["jobs", "attack"]
    assert "](../figures/scale.png)" in text
    for row in profile["rows"][:-1]:
        assert (f"| {row['part']} | {row['seconds']:.3f} | "
                f"{row['seconds'] / profile['epoch_seconds']:.1%} | {row['floor']:.3f} | "
                f"{row['floor'] / row['seconds']:.2f} |") in text
    assert f"{profile['times_reference']:.2f} times the" in text
    assert f"The floor is {profile['share_of_floor']:.2f} of the epoch" in text
    for row in scaled["rows"]:
        assert (f"| {row['p']:.0%} | {row['examples']} | {row['seconds']:.2f} | "
                f"{row['deviation']:+.1%} |") in text
    assert f"+ {1000 * scaled['slope']:.3f} s for each 1,000 examples" in text
    assert "| 50 | 1.2 | 300 | 432 |" in text
    cells = [f"{row['ratio']:.2f}" for row in sized["rows"][1:]]
    assert (f"| mnist-net 2 | 1x28x28 | {sized['rows'][0]['images_per_second']:,.0f} | "
            + " | ".join(cells) + " |") in text
    for record in (profile, scaled, sized):
        assert f"(`{record['command']}`)" in text


def test_jobs_side_by_side_and_in_turn(pages):
    record = benchmark.main(["jobs", "--dataset", "digits", "--limit", "200", "--rounds", "1",
                             "--json", "results/cpu-jobs.json"])
    assert json.loads((pages / "results/cpu-jobs.json").read_text()) == record
    (row,) = record["rounds"]
    assert record["ratio"] == row["side_by_side"] / row["in_turn"] > 0
    text = render.block("jobs", pages)
    assert f"Side by side takes {1 / record['ratio']:.2f} of the time" in text
    assert f"(`{record['command']}`)" in text


def test_attack_finds_the_librarys_verdicts(pages, monkeypatch):
    monkeypatch.setattr(attack, "N", 20)
    record = benchmark.main(["attack", "--dataset", "digits", "--limit", "300", "--rounds", "1",
                             "--json", "results/cpu-attack.json"])
    (row,) = record["rows"]
    assert row["differ"] == 0 and row["robust"] == row["plain_robust"] < 20
    assert record["ratio"] == row["plain_seconds"] / row["seconds"]
    text = render.block("attack", pages)
    assert f"Ratio of the times {record['ratio']:.2f}, of the CPU times" in text
    assert f"(`{record['command']}`)" in text


def test_a_second_profile_is_a_second_table(pages, no_pictures_of_others):
    names = ["results/cpu-training-a.json", "results/cpu-training-b.json"]
    for name, precision in zip(names, ("fp32", "bf16"), strict=True):
        benchmark.main(["training", "--dataset", "digits", "--limit", "20", "--rounds", "1",
                        "--precision", precision, "--json", name])
    text = render.block("training", pages)
    assert text.count("| attack forward |") == 2
    assert "mnist-net, fp32" in text and "mnist-net, bf16" in text


def test_the_picture_shows_the_runs_the_line_and_the_memory():
    record = {"dataset": "mnist", "epochs": 10, "intercept": 1.0, "slope": 0.5, "rows": [
        {"p": p, "examples": x, "seconds": 1 + 0.5 * x, "prune_seconds": 0.25,
         "guard_seconds": 0.5} for p, x in ((0, 8), (0.4, 4))],
        "memory": [{"examples": n, "data": n / 2, "before": 9, "peak": 9 + n} for n in (1, 2)]}
    left, right = speed.draw_scale(json.loads(json.dumps(record))).axes
    line, runs, apart = left.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 1], [8, 5]])
    np.testing.assert_allclose(runs.get_xydata(), [[8, 5], [4, 3]])
    np.testing.assert_allclose(apart.get_ydata(), [0.75, 0.75])
    assert [text.get_text() for text in left.texts] == ["p = 0", "p = 0.4"]
    assert [list(line.get_ydata()) for line in right.lines] == [[10, 11], [9, 9], [0.5, 1]]
    assert right.get_ylabel() == "MiB" and left.get_ylabel() == "seconds"
