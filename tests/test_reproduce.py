"""Studies continue and lose nothing; README and docs say what the records say."""
import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import killing
import pytest
import torch
from conftest import ROOT, refused

import evaluate
import reproduce
from advprune import files, jobs, render, settings, studies

ARMS = ("full", "random-0.3-from-start", "margin-0.3", "puma-0.3")


def small(setups, experiments, arms=ARMS, attack="pgd", also=""):
    """Make an experiment `puma` of these arms, on data that take no time."""
    setups["tiny"] = studies.Setup("--dataset synthetic --limit 200 --epochs 2", attack, also)
    experiments["puma"] = (studies.Part("tiny", arms, 1, 5),)


@pytest.fixture
def tiny(monkeypatch):
    """The function `small`, undone after the test."""
    setups, experiments = dict(studies.SETUPS), dict(studies.EXPERIMENTS)
    monkeypatch.setattr(studies, "SETUPS", setups)
    monkeypatch.setattr(studies, "EXPERIMENTS", experiments)
    return partial(small, setups, experiments)


def records(folder="."):
    return {path.stem: json.loads(path.read_text())
            for path in Path(folder).glob("results/tiny/*.json")}


def test_the_study_continues_and_loses_nothing(tmp_path, tiny, capsys):
    tiny(attack="autoattack")
    first = reproduce.main(["puma", "--arms", "full,puma-0.3"])
    assert first["runs"] == 2 and set(records()) == {"full-0", "puma-0.3-0"}
    (tmp_path / "runs/tiny/margin-0.3-0").mkdir()
    (tmp_path / "runs/tiny/margin-0.3-0/.lock").touch()  # killed in its first epoch
    made, before = Path("runs/tiny/puma-0.3-0/model.safetensors").stat().st_mtime_ns, records()
    whole = reproduce.main(["puma"])
    assert set(records()) == {f"{arm}-0" for arm in ARMS}
    assert all(records()[name] == record for name, record in before.items())
    assert Path("runs/tiny/puma-0.3-0/model.safetensors").stat().st_mtime_ns == made
    assert list(whole["summary"]["tiny"]) == list(ARMS)
    assert "4 runs, 2 of them have records" in capsys.readouterr().err
    for name, record in records().items():
        assert record["n_kept"] == (200 if name == "full-0" else 140)
        assert record["n"] == len(record["robust"]) == 5
        assert record["robust_accuracy"] == record["robust"].count("1") / 5


def test_more_images_are_attacked_and_fewer_are_a_part_of_the_record(tiny):
    tiny(("full",))
    reproduce.main(["puma", "--n-eval", "8"])
    made = Path("runs/tiny/full-0/model.safetensors").stat().st_mtime_ns
    (whole,) = records().values()
    fewer = reproduce.main(["puma", "--n-eval", "4"])["summary"]["tiny"]["full"]
    assert fewer["robust_accuracy"] == whole["robust"][:4].count("1") / 4
    assert records() == {"full-0": whole}
    reproduce.main(["puma", "--n-eval", "9"])
    (more,) = records().values()
    assert more["n"] == len(more["robust"]) == 9
    assert Path("runs/tiny/full-0/model.safetensors").stat().st_mtime_ns == made


def test_another_attack_stands_beside_the_verdict(tiny):
    tiny(("full",), also="fgsm")
    reproduce.main(["puma"])
    (record,), folder = records().values(), Path("runs/tiny/full-0")
    alone = evaluate.main([str(folder), "--attack", "fgsm", "--n", "5", "--out", "alone.json"])
    assert record["attack"] == "pgd" and record["n"] == record["fgsm"]["n"] == 5
    assert record["fgsm"]["robust_accuracy"] == alone["robust_accuracy"]
    assert json.loads((folder / "eval-fgsm-5.json").read_text())["attack"] == "fgsm"
    trained = json.loads((folder / "train.json").read_text())
    assert record["weights"] == trained["weights"]
    assert record["segment_seconds"] == pytest.approx([record["train_seconds"]])


def test_a_record_of_other_flags_is_not_taken_for_this_run(tiny, capsys):
    tiny(("full",))
    reproduce.main(["puma"])
    path = Path("results/tiny/full-0.json")
    path.write_text(path.read_text().replace("--epochs 2", "--epochs 3"))
    capsys.readouterr()
    said = refused(reproduce.main, ["puma"], capsys)
    assert "full-0.json is of a run with other flags" in said


def untimed(record):
    """A record without what depends on time and on the number of jobs."""
    return {name: value for name, value in record.items()
            if "seconds" not in name and name not in ("threads", "jobs")}


def test_jobs_side_by_side_give_the_same_records(tmp_path, monkeypatch, tiny, capsys):
    torch.set_num_threads(1)  # as each job has, so that sums are of the same order
    tiny()
    study, found = ["puma", "--seeds", "2", "--data-dir", str(tmp_path)], {}
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        monkeypatch.chdir(str(tmp_path / str(count)))
        reproduce.main([*study, "--jobs", str(count)])
        found[count] = records()
        assert len(found[count]) == 8
        assert all(row["jobs"] == count and row["threads"] == 1 for row in found[count].values())
    assert ({name: untimed(record) for name, record in found[1].items()}
            == {name: untimed(record) for name, record in found[2].items()})
    lines = [line for line in capsys.readouterr().err.splitlines() if " runs done, " in line][8:]
    assert [line.split("; ")[1] for line in lines] == [
        f"{i} runs done, {8 - i} left, about {line.split()[-2]} minutes"
        for i, line in enumerate(lines, 1)] and len(lines) == 8
    assert "robust accuracy" in Path("runs/tiny/puma-0.3-1.log").read_text()
    reproduce.main([*study, "--jobs", "3"])  # nothing is left to do
    assert records() == found[2]


def test_a_job_that_fails_is_one_sentence(monkeypatch, tiny, capsys):
    tiny(("full", "wrong"))
    monkeypatch.setitem(studies.ARMS, "wrong", "--lr x")
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["puma", "--jobs", "2"])
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert "wrong-0.log ends with: " in said[-1] and "--lr" in said[-1]
    assert not Path("runs/tiny/.lock").exists()


def children(process):
    return [int(child) for child in
            Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def small_study(argv, log):
    """The body of a process."""
    small(studies.SETUPS, studies.EXPERIMENTS)
    killing.script("reproduce", argv, log)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_study_of_jobs_that_was_ended_goes_on(how, forks, tmp_path):
    study, log = ["puma", "--seeds", "2", "--jobs", "2"], tmp_path / "log"
    process = forks.Process(target=small_study, args=(study, log))
    process.start()
    killing.until(records, process)
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
    first = records()
    assert 1 <= len(first) < 8
    process = forks.Process(target=small_study, args=(study, log))
    process.start()
    process.join(120)
    assert set(records()) == {f"{arm}-{seed}" for seed in (0, 1) for arm in ARMS}
    assert all(records()[name] == record for name, record in first.items())  # with their times


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


def test_one_job_measures_the_margins_of_a_seed(tiny):
    tiny()
    (full, other, margin, puma), later = (studies.EXPERIMENTS["puma"][0].runs([seed])
                                          for seed in (0, 1))
    assert reproduce.may_begin(full, {puma}) and reproduce.may_begin(other, {puma})
    assert reproduce.may_begin(puma, {other, *later})
    assert not reproduce.may_begin(puma, {full}) and not reproduce.may_begin(puma, {margin})
    scores = Path("runs/tiny/margins-0/scores.npz")
    scores.parent.mkdir(parents=True)
    scores.touch()
    assert reproduce.may_begin(puma, {margin})


@pytest.mark.parametrize("flags", [["nosuch"], ["gpu"], ["puma", "--arms", "nosuch"],
                                   ["puma", "--jobs", "0"], ["puma", "--dataset", "digits"],
                                   ["digits", "--seeds", "3-1"], ["digits", "--seeds", "0"]])
def test_bad_use(flags, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(flags)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", sorted({
    run.flags for parts in studies.EXPERIMENTS.values() for part in parts
    for run in part.runs([0])}))
def test_every_run_of_an_experiment_is_a_command_of_train(flags, tmp_path):
    (tmp_path / "scores.npz").touch()
    parsed = settings.parse(flags.format(margins=tmp_path / "scores.npz", half=0.1).split())
    assert parsed.dataset == flags.split()[1]


def test_tables_and_pictures_are_those_of_the_records(pages):
    texts = {path: path.read_text() for path in [*pages.glob("*.md"), *pages.glob("docs/*.md")]}
    assert sum("<!-- render: " in text for text in texts.values()) >= 4
    render.render(pages)
    for path, text in texts.items():
        assert path.read_text() == text, f"{path.name}: run `python reproduce.py render`"
    drawn = {path.name for path in (pages / "figures").iterdir()}
    shown = set(re.findall(r"figures/([\w-]+\.png)", "".join(texts.values())))
    assert drawn <= shown  # nothing is drawn for nobody
    assert shown <= {path.name for path in (ROOT / "figures").iterdir()}


def test_a_changed_record_changes_the_page(pages):
    for seed in range(3):
        record = pages / f"results/mnist-pgd5/puma-0.3-{seed}.json"
        files.write_json(record, {**json.loads(record.read_text()), "robust_accuracy": 0.123456})
    assert "docs/puma.md" in render.render(pages)
    assert "0.123" in (pages / "docs/puma.md").read_text()


def test_no_measured_number_stands_in_prose():
    """Accuracies, ratios and times are in rendered blocks; settings have few digits."""
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        prose = render.PLACE.sub("", path.read_text())
        prose = re.sub(r"```.*?```|`[^`]*`|^    .*$|\]\([^)]*\)", "", prose,
                       flags=re.DOTALL | re.MULTILINE)
        assert not re.findall(r"\b0\.\d{3,}|\d+(\.\d+)? (?:times|images/s)", prose), path


def test_the_readme_is_a_front_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
