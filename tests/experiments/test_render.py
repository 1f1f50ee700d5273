"""README, docs and figures say what the records say, or that there is none yet."""
import json
import re

import pytest
from conftest import ROOT, row

from advprune import files
from benchmarks import __main__ as benchmarks
from experiments import figures, render, tables


@pytest.fixture
def only(monkeypatch):
    """only(*names): no other picture is drawn."""
    def keep(*names):
        monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in names})
    return keep


def test_tables_and_pictures_are_those_of_the_records(pages):
    texts = {path: path.read_text() for path in [*pages.glob("*.md"), *pages.glob("docs/*.md")]}
    assert sum("<!-- render: " in text for text in texts.values()) >= 4
    drawn = {path for path in render.render(pages) if path.startswith("figures/")}
    for path, text in texts.items():
        assert path.read_text() == text, f"{path.name}: run `python -m experiments render`"
    shown = {f"figures/{name}" for name in
             re.findall(r"figures/([\w-]+\.png)", "".join(texts.values()))}
    assert drawn <= shown  # nothing is drawn for nobody
    assert shown <= {f"figures/{path.name}" for path in (ROOT / "figures").iterdir()}


def test_a_changed_record_changes_the_page(pages, only):
    only()
    for seed in range(3):
        record = pages / f"results/mnist-pgd5/puma-0.3-{seed}.json"
        files.write_json(record, {**json.loads(record.read_text()), "robust_accuracy": 0.123456})
    assert "docs/puma.md" in render.render(pages)
    assert "0.123" in (pages / "docs/puma.md").read_text()


def test_means_and_their_difference_are_of_the_same_seeds():
    rows = [row("one", 0, 0.5), row("one", 1, 0.7), row("one", 2, 0.1),
            row("other", 0, 0.4), row("other", 1, 0.4)]
    assert tables.beside(rows, "one", "other")[1].startswith("0.600 instead of 0.400 (")


def test_no_measured_number_stands_in_prose():
    """Accuracies, ratios and times are in rendered blocks; settings have few digits."""
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        prose = render.PLACE.sub("", path.read_text())
        prose = re.sub(r"```.*?```|`[^`]*`|^    .*$|\]\([^)]*\)", "", prose,
                       flags=re.DOTALL | re.MULTILINE)
        assert not re.findall(r"\b0\.\d{3,}|\d+(\.\d+)? (?:times|images/s)", prose), path


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_equal_time_has_the_arms_pruned_after_epoch_3(pages):
    text = render.block("equal-time", pages)
    arms = set(re.findall(r"^\| ([a-z][\w+.-]*) \|", text, re.MULTILINE))
    assert {"random-0.4", "middle-0.4", "low+high-0.4-balanced", "high-0.6-running"} <= arms
    assert not [arm for arm in arms if re.search("margin|puma|epochs|full", arm)]


def test_a_benchmark_that_is_not_measured_says_how_to(tmp_path, only):
    only("scale")
    for name in ("docs", "results", "figures"):
        (tmp_path / name).mkdir()
    page = tmp_path / "docs/speed.md"
    page.write_text((ROOT / "docs/speed.md").read_text())
    render.render(tmp_path)
    text = page.read_text()
    said = re.findall(r"<!-- render: \w+ -->\nNot yet measured: `python -m benchmarks (.*)`\.\n",
                      text)
    assert [line.split()[0] for line in said] == ["training", "scale", "layouts"]
    for line in said:
        benchmarks.parser().parse_args(line.split())
        assert re.search(r"--json results/cpu-[\w-]+\.json$", line)
    assert not list((tmp_path / "figures").iterdir())
