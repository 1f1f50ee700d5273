"""A place that cannot be written to is refused before the work, by every script."""
import subprocess

import pytest

import benchmark
import evaluate
import geometry
import prune
import reproduce
import toy_model
import train
from advprune import data, models

FOLDERS = ["afile/x", "afile/x/y", ".", "afile", "x" * 300]
FILES = ["afile/x", ".", "afile", "nodir/x", "x" * 250 + ".json"]
CASES = [(main, flags, place) for places, commands in (
    (FOLDERS, [(train, ["--dataset", "synthetic", "--out"]), (prune, ["RUN", "--out"]),
               (toy_model, ["--out"]), (geometry, ["synthetic", "--out"])]),
    (FILES, [(evaluate, ["RUN", "--out"]), (benchmark, ["--json"]), (benchmark, ["--figure"]),
             (evaluate, ["--weights", "w.pth", "--dataset", "synthetic", "--out"])]),
) for main, flags in commands for place in places]


def no_work(*_, **__):
    raise AssertionError("it began to work")


@pytest.fixture
def idle(monkeypatch):
    """Nothing is loaded, measured or computed."""
    for module, name in ((data, "load"), (models, "build"), (benchmark, "kernels"),
                         (benchmark, "ablation"), (toy_model, "study"),
                         (toy_model.perceptron, "study"), (reproduce, "run_arm")):
        monkeypatch.setattr(module, name, no_work)


def refused(main, argv, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert sorted(tmp_path.rglob("*")) == before
    return said[0]


@pytest.mark.parametrize(("script", "flags", "place"), CASES)
def test_refused_before_the_work(script, flags, place, trained, tmp_path, capsys, request):
    flags = [str(trained()) if flag == "RUN" else flag for flag in flags]
    request.getfixturevalue("idle")
    (tmp_path / "afile").write_text("text")
    said = refused(script.main, [*flags, place], tmp_path, capsys)
    assert said.startswith(f"{script.__name__}.py: ")
    assert place[:30] in said


@pytest.mark.parametrize("name", ["runs", "results"])
def test_a_file_where_the_default_folder_would_be(name, idle, tmp_path, capsys):
    (tmp_path / name).write_text("text")
    commands = [(reproduce, ["pruning", "digits"])]
    if name == "runs":
        commands += [(train, ["--dataset", "synthetic"]), (toy_model, []),
                     (geometry, ["synthetic"])]
    for script, argv in commands:
        assert name in refused(script.main, argv, tmp_path, capsys)


def test_a_read_only_place(trained, tmp_path, capsys, request):
    run, place = str(trained()), tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(place)],
                      capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    request.getfixturevalue("idle")
    new = str(place / "new")
    try:
        for script, argv in (
                (train, ["--dataset", "synthetic", "--out", new]), (prune, [run, "--out", new]),
                (evaluate, [run, "--out", new]), (benchmark, ["--json", new]),
                (benchmark, ["--figure", new]), (toy_model, ["--out", new]),
                (geometry, ["synthetic", "--out", new])):
            assert "Read-only file system" in refused(script.main, argv, tmp_path, capsys)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_one_file_for_two_records(idle, tmp_path, capsys):
    assert "same file" in refused(benchmark.main, ["--json", "x", "--figure", "x"], tmp_path,
                                  capsys)
