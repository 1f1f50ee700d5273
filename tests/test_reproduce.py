"""Studies continue and lose nothing; README and docs say what the records say."""
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import killing
import pytest
import torch
from conftest import ROOT

import reproduce
from advprune import files, jobs, tables

SMALL = reproduce.Study("--dataset synthetic --limit 200 --epochs 2", reproduce.PUMA, 5, "pgd")


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


def untimed(record):
    """A study's record without what depends on time and on the number of jobs."""
    rows = [{name: value for name, value in row.items()
             if name not in ("train_seconds", "guard_seconds", "threads", "jobs")}
            for row in record["rows"]]
    return rows, record["summary"], record["n"], record["study"]


def test_jobs_side_by_side_give_the_same_record(tmp_path, monkeypatch, capsys):
    torch.set_num_threads(1)  # as each job has, so that sums are of the same order
    monkeypatch.setitem(reproduce.STUDIES, ("puma", "mnist"), SMALL)
    study = ["puma", "mnist", "--seeds", "2", "--arms", "random,puma,keep-easy", "--data-dir",
             str(tmp_path)]
    records = {}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(str(tmp_path / str(count)))
        records[count] = reproduce.main([*study, "--jobs", str(count)])
        assert [row["jobs"] for row in records[count]["rows"]] == [count] * 8
        assert all(row["threads"] == 1 for row in records[count]["rows"])
        written = json.loads(Path("results/puma-mnist.json").read_text())
        assert written["rows"] == records[count]["rows"]
    assert untimed(records[2]) == untimed(records[1])
    lines = [line for line in capsys.readouterr().err.splitlines() if " runs done, " in line]
    assert [line.split("; ")[1] for line in lines] == [
        f"{i} runs done, {8 - i} left, about {line.split()[-2]} minutes"
        for i, line in enumerate(lines, 1)] and len(lines) == 8
    assert "robust accuracy" in Path("runs/puma-mnist/puma-1.log").read_text()
    again = reproduce.main([*study, "--jobs", "3"])  # nothing is left to do
    assert again["rows"] == records[2]["rows"]


def test_a_job_that_fails_is_one_sentence(monkeypatch, capsys):
    small = reproduce.Study("--dataset synthetic --limit 200 --epochs 2",
                            {"full": "", "wrong": "--lr x"}, 5, "pgd")
    monkeypatch.setitem(reproduce.STUDIES, ("puma", "mnist"), small)
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["puma", "mnist", "--seeds", "1", "--jobs", "2"])
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert "wrong-0.log ends with: " in said[-1] and "--lr" in said[-1]
    assert not Path("runs/puma-mnist/.lock").exists()


def children(process):
    return [int(child) for child in
            Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def small_study(argv, log):
    """The body of a process."""
    reproduce.STUDIES["puma", "mnist"] = SMALL
    killing.script("reproduce", argv, log)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_study_of_jobs_that_was_ended_goes_on(how, forks, tmp_path):
    study, log = ["puma", "mnist", "--seeds", "2", "--jobs", "2"], tmp_path / "log"
    record = tmp_path / "results/puma-mnist.json"
    process = forks.Process(target=small_study, args=(study, log))
    process.start()
    killing.until(record.exists, process)
    workers = children(process.pid)
    os.kill(process.pid, how)
    process.join(30)
    assert process.exitcode == (130 if how == signal.SIGINT else -how)
    assert len(workers) >= 2
    killing.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=20)
    assert "Traceback" not in log.read_text()
    if how == signal.SIGINT:
        assert log.read_text().endswith(
            "reproduce.py: interrupted; the same command continues the study\n")
        assert not list((tmp_path / "runs").rglob(".lock"))
    first = json.loads(record.read_text())["rows"]
    assert 1 <= len(first) < 12
    process = forks.Process(target=small_study, args=(study, log))
    process.start()
    process.join(120)
    rows = json.loads(record.read_text())["rows"]
    assert [(row["seed"], row["arm"]) for row in rows] == [
        (seed, arm) for seed in (0, 1) for arm in reproduce.PUMA]
    assert all(row in rows for row in first)  # with their times


def parent_of_a_long_job():
    """The body of a process."""
    workers = jobs.Workers(2, time.sleep)
    workers.start("long", Path("log"), 300)
    Path("begun").touch()
    workers.finished()


def test_jobs_end_with_their_parent_whatever_they_do(forks):
    process = forks.Process(target=parent_of_a_long_job)
    process.start()
    killing.until(lambda: Path("begun").exists() and Path("log").exists(), process)
    workers = children(process.pid)
    process.kill()
    process.join()
    assert len(workers) >= 2
    killing.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=20)


def test_one_job_measures_the_margins_of_a_seed(tmp_path):
    def may_begin(arm, *running):
        return reproduce.may_begin(tmp_path, SMALL, 1, arm, set(running))

    assert may_begin("full") and may_begin("random") and not may_begin("puma")
    (tmp_path / "full-1").mkdir()
    (tmp_path / "full-1/eval.json").touch()
    assert may_begin("puma", (1, "random")) and may_begin("puma", (0, "keep-easy"))
    assert not may_begin("puma", (1, "keep-easy"))
    (tmp_path / "margins-1").mkdir()
    (tmp_path / "margins-1/scores.npz").touch()
    assert may_begin("puma", (1, "keep-easy"))


@pytest.mark.parametrize("flags", [["puma"], ["pruning", "cifar10"], ["nosuch"], ["gpu"],
                                   ["puma", "mnist", "--arms", "nosuch"],
                                   ["puma", "mnist", "--jobs", "0"]])
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
