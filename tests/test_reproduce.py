"""Studies continue and lose nothing; README and docs say what the records say."""
import json
import re
import shutil

import pytest
from conftest import ROOT

import reproduce
from advprune import files, tables


def test_the_study_continues_and_loses_nothing(tmp_path, monkeypatch, capsys):
    small = reproduce.Study("--dataset synthetic --limit 200 --epochs 2", reproduce.PUMA, 5)
    monkeypatch.setitem(reproduce.STUDIES, ("puma", "mnist"), small)
    study = ["puma", "mnist", "--seeds", "1"]
    first = reproduce.main([*study, "--arms", "random,puma"])
    assert [row["arm"] for row in first["rows"]] == ["full", "random", "puma"]
    (tmp_path / "runs/puma-mnist/keep-easy-0").mkdir()
    (tmp_path / "runs/puma-mnist/keep-easy-0/.lock").touch()  # killed in its first epoch
    made = (tmp_path / "runs/puma-mnist/puma-0/model.safetensors").stat().st_mtime_ns
    whole = reproduce.main([*study, "--arms", "keep-easy"])
    assert [row["arm"] for row in whole["rows"]] == ["full", "random", "puma", "keep-easy"]
    assert whole["rows"][:3] == first["rows"]
    assert (tmp_path / "runs/puma-mnist/puma-0/model.safetensors").stat().st_mtime_ns == made
    written = json.loads((tmp_path / "results/puma-mnist.json").read_text())
    assert written["rows"] == whole["rows"] and written["summary"]["puma"]["seeds"] == 1
    for row in whole["rows"]:
        assert row["n_kept"] == (200 if row["arm"] == "full" else 140) and row["n"] == 5
    with pytest.raises(SystemExit) as stop:
        reproduce.main([*study, "--n", "6"])
    assert stop.value.code == 2 and (tmp_path / "results/puma-mnist.json").exists()


@pytest.mark.parametrize("flags", [["puma"], ["pruning", "cifar10"], ["nosuch"], ["gpu"],
                                   ["puma", "mnist", "--arms", "nosuch"]])
def test_bad_use(flags, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(flags)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pages(tmp_path):
    """The folder of a copy of all that `render` reads."""
    for name in ("README.md", "docs", "results", "examples"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "figures").mkdir()
    return tmp_path


def test_tables_and_pictures_are_those_of_the_records(pages):
    texts = {path: path.read_text() for path in [*pages.glob("*.md"), *pages.glob("docs/*.md")]}
    assert sum("<!-- render: " in text for text in texts.values()) >= 4
    tables.render(pages)
    for path, text in texts.items():
        assert path.read_text() == text, f"{path.name}: run `python reproduce.py render`"
    drawn = {path.name for path in (pages / "figures").iterdir()}
    shown = set(re.findall(r"figures/([\w-]+\.png)", "".join(texts.values())))
    assert drawn <= shown  # nothing is drawn for nobody
    assert shown <= {path.name for path in (ROOT / "figures").iterdir()}


def test_a_changed_record_changes_the_page(pages):
    record = pages / "results/puma-mnist.json"
    content = json.loads(record.read_text())
    content["summary"]["puma"]["robust_accuracy"] = 0.123456
    files.write_json(record, content)
    assert "docs/puma.md" in tables.render(pages)
    assert "0.123" in (pages / "docs/puma.md").read_text()


def test_no_measured_number_stands_in_prose():
    """Accuracies, ratios and times are in rendered blocks; settings have few digits."""
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        prose = tables.PLACE.sub("", path.read_text())
        prose = re.sub(r"```.*?```|`[^`]*`|^    .*$|\]\([^)]*\)", "", prose,
                       flags=re.DOTALL | re.MULTILINE)
        assert not re.findall(r"\b0\.\d{3,}|\d+(\.\d+)? (?:times|images/s)", prose), path


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
