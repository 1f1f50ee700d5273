"""Files that were damaged, and evaluations that meet: nothing is lost, or trusted in silence."""
import json
import random
import shutil
from pathlib import Path

import killing
import pytest
import torch
from conftest import TRAINED, refused, same, write_images

import evaluate
import prune
import train
from advprune import checkpoint, data, run

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


# --- checkpoints


@pytest.fixture
def cut(tmp_path, cut_off):
    """A run that was interrupted in its third epoch."""
    folder = tmp_path / "cut"
    with cut_off(2):
        train.main([*TRAINED, "--out", str(folder)])
    return folder


@pytest.mark.parametrize("how", DAMAGE)
def test_the_checkpoint_before_a_damaged_one_serves(how, cut, trained, capsys):
    state = cut / "state.pt"
    state.write_bytes(DAMAGE[how](state.read_bytes()))
    capsys.readouterr()
    train.main([*TRAINED, "--out", str(cut)])
    said = capsys.readouterr().err
    assert f"{state} is damaged" in said
    assert "state.previous.pt, an epoch older, is used instead" in said
    assert same(cut, trained())


def test_two_damaged_checkpoints_are_one_sentence(cut, capsys):
    for name, how in zip(run.STATES, ("flipped", "truncated"), strict=True):
        (cut / name).write_bytes(DAMAGE[how]((cut / name).read_bytes()))
    for argv in (["--resume", str(cut)], [*TRAINED, "--out", str(cut)]):
        assert "start the run afresh" in refused(train.main, argv, capsys)


def test_no_flipped_byte_is_trusted(cut, tmp_path):
    """Each of 200 places alone, the checksum's own line included."""
    content, rng = (cut / "state.pt").read_bytes(), random.Random(1)
    for place in [*range(0, 82, 3), *rng.sample(range(len(content)), 170)]:
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "damaged.pt").write_bytes(damaged)
        with pytest.raises(ValueError):  # noqa: PT011  each reader has its own words
            checkpoint.State(tmp_path / "damaged.pt").load()


@pytest.mark.parametrize(("main", "flags", "state"), [
    (evaluate.main, ["--attack", "fgsm", "--n", "6", "--out", "out.json"], "out.state"),
    (prune.main, ["--score", "clean-loss", "--out", "out"], "out/.state-0of1")])
def test_a_damaged_state_is_set_aside(main, flags, state, trained, capsys):
    state = Path(state)
    state.parent.mkdir(exist_ok=True)
    state.write_bytes(b"damaged")
    main([str(trained()), *flags])
    assert f"{state} is damaged" in (said := capsys.readouterr().err)
    assert "the work starts anew" in said
    assert state.with_name(f"{state.name}.damaged").read_bytes() == b"damaged"
    assert not state.exists()


# --- records


@pytest.fixture
def copy(trained, tmp_path):
    """A run whose files may be damaged."""
    return shutil.copytree(trained(), tmp_path / "run")


@pytest.mark.parametrize("content", [*RECORDS, '{"format": 1}', '{"format": 1, "settings": {}}'])
def test_a_damaged_config_is_one_sentence(content, copy, capsys):
    (copy / "config.json").write_text(content)
    for main, argv in ((evaluate.main, [copy]), (prune.main, [copy]),
                       (train.main, ["--resume", copy]), (train.main, [*TRAINED, "--out", copy]),
                       (train.main, ["--dataset", "synthetic", "--prune", "puma",
                                     "--score-model", copy])):
        said = refused(main, list(map(str, argv)), capsys)
        assert any(words in said for words in ("no readable config.json", "another version",
                                               "config.json is damaged"))


@pytest.mark.parametrize("content", RECORDS)
def test_a_damaged_record_is_one_sentence(content, copy, capsys):
    (copy / "train.json").write_text(content)
    for main, argv in ((evaluate.main, [copy]), (prune.main, [copy]),
                       (train.main, ["--resume", copy]), (train.main, [*TRAINED, "--out", copy])):
        assert "train.json is damaged" in refused(main, list(map(str, argv)), capsys)


@pytest.mark.parametrize("content", [*RECORDS, '{"labels": 3, "unreadable": []}',
                                     '{"labels": ["a"], "unreadable": []}'])
def test_a_damaged_index_of_decoded_images_is_made_anew(content, tmp_path):
    write_images("ab", train=3, val=3)
    wanted = data.load("folder", tmp_path / "images", image_size=8)
    for index in (tmp_path / "images").glob(".advprune-*.json"):
        index.write_text(content)
    again = data.load("folder", tmp_path / "images", image_size=8)
    assert torch.equal(again.images[:6], wanted.images[:6])
    assert torch.equal(again.labels, wanted.labels)


# --- what is trusted


def test_weights_whose_bytes_changed_are_refused(copy, capsys):
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # of the mantissa: still a number
    file.write_bytes(content)
    for main in (evaluate.main, prune.main):
        assert "its checksum differs" in refused(main, [str(copy)], capsys)


# --- two evaluations of one run at once


def test_two_evaluations_of_one_run_at_once_keep_both_results(copy, forks, tmp_path):
    flags = [["--epsilon", "0.05"], ["--epsilon", "0.3"], ["--seed", "1"]]
    commands = [killing.Command(forks, "evaluate", tmp_path / f"log-{i}") for i in range(3)]
    started = [command.start(str(copy), "--attack", "fgsm,pgd", "--n", "6", *flags[i])
               for i, command in enumerate(commands)]
    printed = []
    for i, command in enumerate(commands):
        command.wait(started[i])
        printed.append(json.loads((tmp_path / f"log-{i}").read_text().splitlines()[-1]))
    kept = [json.loads(path.read_text()) for path in copy.glob("eval-*.json")]
    for record in printed:
        assert sum(all(file[name] == record[name] for name in record) for file in kept) == 1
    assert len(kept) == len(flags)
    assert not [path for path in copy.rglob("*") if path.suffix in (".state", ".part")]
