"""Files that were damaged, and evaluations that meet: nothing is lost, or trusted in silence."""
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT
from PIL import Image

import evaluate
import prune
import reproduce
import train
from advprune import cli, data, files, pruning, runs, studies, tables

RECORDS = ["null", "[]", "{}", '"x"', '{"n": 1', ""]  # JSON of the wrong kind, or cut short


def flipped(content, rng):
    """The bytes, with all bits of 40 random ones flipped."""
    content = bytearray(content)
    for place in rng.sample(range(len(content)), min(40, len(content))):
        content[place] ^= 0xFF
    return bytes(content)


DAMAGE = {"flipped": lambda content: flipped(content, random.Random(0)),
          "one bit": lambda content: content[:-400] + bytes([content[-400] ^ 1]) + content[-399:],
          "truncated": lambda content: content[:len(content) // 2], "empty": lambda content: b""}


def refused(main, argv, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in argv])
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert len(said) == 1, said
    return said[0]


# --- checkpoints


@pytest.fixture
def cut(tmp_path, cut_off):
    """A run that was interrupted in its third epoch."""
    run = tmp_path / "cut"
    with cut_off(2):
        train.main(["--dataset", "synthetic", "--limit", "600", "--epochs", "3", "--out",
                    str(run)])
    return run


@pytest.mark.parametrize("how", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_serves(how, cut, trained, capsys):
    state = cut / "state.pt"
    state.write_bytes(DAMAGE[how](state.read_bytes()))
    train.main(["--resume", str(cut)])
    said = capsys.readouterr().err
    assert f"{state} is damaged" in said
    assert "state.previous.pt, an epoch older, is used instead" in said
    mine, whole = (safetensors.torch.load_file(run / "model.safetensors")
                   for run in (cut, trained()))
    assert all(torch.equal(mine[name], whole[name]) for name in whole)


@pytest.mark.parametrize("how", DAMAGE)
def test_two_damaged_checkpoints_are_one_sentence(how, cut, capsys):
    for name in runs.CHECKPOINTS:
        (cut / name).write_bytes(DAMAGE[how]((cut / name).read_bytes()))
    assert "start the run afresh" in refused(train.main, ["--resume", cut], capsys)


def test_no_flipped_byte_is_trusted(cut, tmp_path):
    """Each of 200 places alone, the checksum's own line included."""
    content, rng = (cut / "state.pt").read_bytes(), random.Random(1)
    for place in [*range(0, 82, 3), *rng.sample(range(len(content)), 170)]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ValueError):  # noqa: PT011  each reader has its own words
            files.read_state(tmp_path / "damaged.pt")


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_evaluation_state_is_set_aside(how, trained, monkeypatch, capsys, tmp_path):
    flags = [str(trained()), "--attack", "fgsm,pgd", "--n", "6", "--batch-size", "6", "--out"]
    wanted = evaluate.main([*flags, "whole.json"])
    batch = evaluate.Evaluation.batch

    def cut_off(self, name, ids):
        if name != "fgsm":
            raise KeyboardInterrupt
        batch(self, name, ids)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(evaluate.Evaluation, "batch", cut_off)
        evaluate.main([*flags, "cut.json"])
    state = tmp_path / "cut.state"
    state.write_bytes(DAMAGE[how](state.read_bytes()))
    assert evaluate.main([*flags, "cut.json"])["per_attack"] == wanted["per_attack"]
    assert "the work starts anew" in capsys.readouterr().err
    assert (tmp_path / "cut.state.damaged").exists()
    assert not state.exists()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_scoring_state_is_set_aside(how, trained, monkeypatch, capsys, tmp_path):
    flags = [str(trained()), "--score", "clean-loss", "--batch-size", "100", "--out"]
    prune.main([*flags, "whole"])
    scores, calls = pruning.ops.cross_entropy_scores, []

    def cut_off(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args)
        return scores(*args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(pruning.ops, "cross_entropy_scores", cut_off)
        prune.main([*flags, "cut"])
    state, = tmp_path.glob("cut.*.state")
    state.write_bytes(DAMAGE[how](state.read_bytes()))
    prune.main([*flags, "cut"])
    assert "the work starts anew" in capsys.readouterr().err
    assert tmp_path.joinpath(f"{state.name}.damaged").exists()
    with np.load("cut/scores.npz") as mine, np.load("whole/scores.npz") as whole:
        assert np.array_equal(mine["scores"], whole["scores"])


# --- records


@pytest.mark.parametrize("content", RECORDS)
def test_a_damaged_config_is_one_sentence(content, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    (run / "config.json").write_text(content)
    for main, argv in ((evaluate.main, [run]), (prune.main, [run]),
                       (train.main, ["--resume", run]),
                       (train.main, ["--dataset", "synthetic", "--prune", "puma",
                                     "--margin-model", run])):
        assert "no readable config.json" in refused(main, argv, capsys)


@pytest.mark.parametrize("content", RECORDS)
def test_a_damaged_record_is_one_sentence(content, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    (run / "train.json").write_text(content)
    assert "train.json is damaged" in refused(evaluate.main, [run], capsys)
    assert "train.json is damaged" in refused(prune.main, [run], capsys)
    results = tmp_path / "results"
    results.mkdir()
    (results / "digits").mkdir()
    (results / "digits/full-0.json").write_text(content)
    assert "full-0.json is damaged" in refused(reproduce.main, ["digits"], capsys)
    (results / "cpu-kernels.json").write_text(content)
    with pytest.raises(cli.UserError, match="is damaged"):
        tables.Records(results)["cpu-kernels"]
    (results / "digits/full-0.json").unlink()
    first = studies.EXPERIMENTS["digits"][0].runs()[0]
    for name in ("train.json", f"eval-{first.n}.json"):  # of a run that has ended
        arm = Path("runs") / first.name
        shutil.rmtree(arm, ignore_errors=True)
        shutil.copytree(trained(), arm)
        (arm / f"eval-{first.n}.json").write_text(
            '{"n": 5, "robust": "", "robust_accuracy": 0, "robust_interval": []}')
        (arm / name).write_text(content)
        with pytest.raises(cli.UserError, match=f"{name} is damaged"):
            reproduce.run_arm(first, "data", 1)


@pytest.mark.parametrize("content", [*RECORDS, '{"labels": 3, "unreadable": []}',
                                     '{"labels": ["a"], "unreadable": []}'])
def test_a_damaged_index_of_decoded_images_is_made_anew(content, tmp_path):
    for part in ("train", "val"):
        for label in "ab":
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (9, 9), (40 * i, 0, 0)).save(folder / f"{i}.png")
    wanted = data.load("folder", tmp_path / "images", image_size=8)
    for index in (tmp_path / "images").glob(".advprune-*.json"):
        index.write_text(content)
    again = data.load("folder", tmp_path / "images", image_size=8)
    assert torch.equal(again.images[:6], wanted.images[:6])
    assert torch.equal(again.labels, wanted.labels)


# --- what is trusted


def test_weights_whose_bytes_changed_are_refused(trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    weights = run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # of the mantissa: still a number
    weights.write_bytes(content)
    for main in (evaluate.main, prune.main):
        assert "its checksum differs" in refused(main, [run], capsys)


def test_kinds_are_checked(tmp_path):
    model, images = torch.nn.Flatten(), torch.rand(4, 1, 1, 3)
    labels = torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="unknown score 'lost'"):
        pruning.score(model, images, labels, "lost")
    with pytest.raises(ValueError, match="train.py collects"):
        pruning.score(model, images, labels, "running-loss")
    with pytest.raises(ValueError, match="unknown strategy 'highest'"):
        pruning.select(torch.rand(4), "highest", 0.5)
    pruning.save("scores.npz", torch.rand(4), labels, labels, "loss")
    with pytest.raises(cli.UserError, match="of kind loss, but margin is needed"):
        pruning.load("scores.npz", labels, "margin")
    with pytest.raises(cli.UserError, match="its labels differ"):
        pruning.load("scores.npz", labels.flip(0))


# --- two evaluations of one run at once


def test_two_evaluations_of_one_run_at_once_keep_both_results(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained(), run)
    common = [sys.executable, ROOT / "evaluate.py", run, "--attack", "fgsm,pgd", "--n", "6"]
    settings = [["--epsilon", "0.05"], ["--epsilon", "0.3"], ["--seed", "1"]]
    started = [subprocess.Popen([*common, *flags], stdout=subprocess.PIPE, text=True)
               for flags in settings]
    printed = [json.loads(one.communicate(timeout=300)[0].splitlines()[-1]) for one in started]
    assert all(one.returncode == 0 for one in started)
    kept = [json.loads(path.read_text()) for path in run.glob("eval-*.json")]
    for record in printed:
        assert sum(all(file[name] == record[name] for name in record) for file in kept) == 1
    assert len(kept) == len(settings)
    assert not [path for path in run.iterdir() if path.suffix in (".state", ".lock", ".part")]
