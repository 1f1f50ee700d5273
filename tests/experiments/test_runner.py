"""A study continues, loses nothing, and runs side by side as it does in turn."""
import json
import os
import signal
from pathlib import Path

import killing
import pytest
import tiny_study
from conftest import refused

import evaluate
from advprune import files
from advprune.errors import UserError
from experiments import __main__ as experiments
from experiments import runner, studies


@pytest.fixture
def tiny(monkeypatch):
    """The function tiny_study.add, undone after the test."""
    monkeypatch.setattr(studies, "EXPERIMENTS", dict(studies.EXPERIMENTS))
    return tiny_study.add


def interrupt(*_):
    raise KeyboardInterrupt


def records():
    return {path.stem: json.loads(path.read_text())
            for path in Path().glob("results/tiny/*.json")}


def weights_time(run):
    return Path(f"runs/tiny/{run}/model.safetensors").stat().st_mtime_ns


def test_the_study_continues_and_loses_nothing(tmp_path, tiny, capsys):
    tiny()
    first = experiments.main(["puma", "--arms", "full,puma-0.3"])
    assert first["runs"] == 2 and set(records()) == {"full-0", "puma-0.3-0"}
    (tmp_path / "runs/tiny/margin-0.3-0").mkdir()
    (tmp_path / "runs/tiny/margin-0.3-0/.lock").touch()  # killed in its first epoch
    made, before = weights_time("puma-0.3-0"), records()
    whole = experiments.main(["puma"])
    assert set(records()) == {f"{arm}-0" for arm in tiny_study.ARMS}
    assert all(records()[name] == record for name, record in before.items())
    assert weights_time("puma-0.3-0") == made
    assert list(whole["summary"]["tiny"]) == list(tiny_study.ARMS)
    assert "4 runs, 2 of them have records" in capsys.readouterr().err
    for name, record in records().items():
        assert record["n_kept"] == (200 if name == "full-0" else 140)
        assert record["n"] == len(record["robust"]) == 5
        assert record["robust_accuracy"] == record["robust"].count("1") / 5


def test_what_has_a_record_is_said_and_repeated_only_with_again(tiny, monkeypatch, capsys):
    tiny(("full", "margin-0.3"))
    experiments.main(["puma"])
    made, before = weights_time("full-0"), records()
    capsys.readouterr()
    experiments.main(["puma"])
    out, err = capsys.readouterr()
    assert err == "puma: nothing was run: 2 stored records\n" and "+-" not in out  # of one seed
    again = ["puma", "--arms", "full", "--again"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "judge", interrupt)
        experiments.main(again)
    assert records() == before and weights_time("full-0-2") == made  # nothing is lost
    assert not Path("runs/tiny/margins-0").exists()  # they were of the older run
    experiments.main(again)
    assert records()["full-0"]["train_seconds"] != before["full-0"]["train_seconds"]
    assert records()["margin-0.3-0"] == before["margin-0.3-0"]
    assert {path.name for path in Path("runs/tiny").glob("full*")} == {
        "full-0", "full-0-2", "full-0-3"}


def test_an_unknown_arm_is_refused_with_the_names(tiny, capsys):
    tiny()
    said = refused(experiments.main, ["puma", "--arms", "full,puma-0.9"], capsys)
    assert "'puma-0.9'" in said and all(arm in said for arm in tiny_study.ARMS)
    assert not records()


def test_more_images_are_attacked_and_fewer_are_a_part_of_the_record(tiny):
    tiny(("full",))
    experiments.main(["puma", "--n-eval", "8"])
    made = weights_time("full-0")
    (whole,) = records().values()
    fewer = experiments.main(["puma", "--n-eval", "4"])["summary"]["tiny"]["full"]
    assert fewer["robust_accuracy"] == whole["robust"][:4].count("1") / 4
    assert records() == {"full-0": whole}
    experiments.main(["puma", "--n-eval", "9"])
    (more,) = records().values()
    assert more["n"] == len(more["robust"]) == 9
    assert weights_time("full-0") == made


def test_another_attack_stands_beside_the_verdict(tiny):
    tiny(("full",), also="fgsm")
    experiments.main(["puma"])
    (record,), folder = records().values(), Path("runs/tiny/full-0")
    alone = evaluate.main([str(folder), "--attack", "fgsm", "--n", "5", "--out", "alone.json"])
    assert record["attack"] == "pgd" and record["n"] == record["fgsm"]["n"] == 5
    assert record["fgsm"]["robust_accuracy"] == alone["robust_accuracy"]
    trained = json.loads((folder / "train.json").read_text())
    assert record["weights"] == trained["weights"]
    assert record["segment_seconds"] == pytest.approx([record["train_seconds"]])


def test_a_record_of_other_flags_is_not_taken_for_this_run(tiny, capsys):
    tiny(("full",))
    experiments.main(["puma"])
    path = Path("results/tiny/full-0.json")
    whole = path.read_text()
    path.write_text(whole.replace("--epochs 2", "--epochs 3"))
    said = refused(experiments.main, ["puma"], capsys)
    assert "full-0.json is of a run with other flags" in said
    path.write_text(whole[:100])
    assert "full-0.json is damaged" in refused(experiments.main, ["puma"], capsys)


def test_two_at_once_are_refused(tiny):
    tiny(("full",))
    Path("runs/tiny").mkdir(parents=True)
    with (files.locked("runs/tiny/.lock"),
          pytest.raises(UserError, match="the study runs/tiny is in use by another process")):
        experiments.main(["puma"])
    assert not records()


def children(process):
    return [int(child) for child in
            Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_study_of_jobs_that_was_ended_goes_on(how, forks, tmp_path, tiny):
    study, log = ["puma", "--seeds", "2"], tmp_path / "log"
    process = forks.Process(target=tiny_study.command, args=([*study, "--jobs", "2"], log))
    process.start()
    killing.until(records, process)
    workers = children(process.pid)
    os.kill(process.pid, how)
    process.join(30)
    assert process.exitcode == (130 if how == signal.SIGINT else -how)
    assert len(workers) >= 2
    killing.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert "Traceback" not in log.read_text()
    if how == signal.SIGINT:
        assert log.read_text().endswith(
            ": interrupted; the same command continues the study\n")
    first = records()
    assert 1 <= len(first) < 8
    tiny()
    experiments.main(study)
    assert set(records()) == {f"{arm}-{seed}" for seed in (0, 1) for arm in tiny_study.ARMS}
    assert all(records()[name] == record for name, record in first.items())  # with their times


def test_one_job_measures_the_margins_of_a_seed(tiny):
    tiny()
    (full, other, margin, puma), later = (studies.EXPERIMENTS["puma"][0].runs([seed])
                                          for seed in (0, 1))
    assert runner.may_begin(full, {puma}) and runner.may_begin(other, {puma})
    assert runner.may_begin(puma, {other, *later})
    assert not runner.may_begin(puma, {full}) and not runner.may_begin(puma, {margin})
    scores = Path("runs/tiny/margins-0/scores.npz")
    scores.parent.mkdir(parents=True)
    scores.touch()
    assert runner.may_begin(puma, {margin})


@pytest.mark.parametrize("flags", [[], ["nosuch"], ["gpu"], ["puma", "--arms", "nosuch"],
                                   ["puma", "--jobs", "0"], ["all", "--again"],
                                   ["figure5", "--again"], ["puma", "--dataset", "digits"],
                                   ["toy", "--n-eval", "5"], ["toy", "--seeds", "3"],
                                   ["digits", "--seeds", "3-1"], ["digits", "--seeds", "0"]])
def test_bad_use(flags, capsys, tmp_path):
    refused(experiments.main, flags, capsys)
    assert not list(tmp_path.iterdir())
