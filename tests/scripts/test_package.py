"""The package as others use it: what imports what, the examples, an installation."""
import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch
from conftest import ROOT

from advprune import run

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WORDS = {"own_loop": r"1078 kept; accuracy \d\d", "own_network": r"dropped of each digit: \[\d",
         "operators": r"kernels: \w+.* 600 kept"}
OURS = {path.stem for path in (ROOT / "advprune").glob("*.py")}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def python(*args, folder=".", **env):
    done = subprocess.run([sys.executable, *map(str, args)], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(path):
    """The modules that a file imports anywhere: advprune's as advprune.NAME."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= ({f"advprune.{alias.name}" for alias in node.names}
                      if node.module == "advprune" else {node.module})
    return found


def within(name):
    """The modules of the library that its module `name` imports."""
    return {module.split(".")[1] for module in imported(ROOT / f"advprune/{name}.py")
            if module.startswith("advprune.")}


def test_imports_go_one_way():
    above = {"advprune": SCRIPTS | {"benchmarks", "experiments"}, "benchmarks": {"experiments"}}
    for folder, forbidden in above.items():
        for path in (ROOT / folder).glob("*.py"):
            tops = {module.split(".")[0] for module in imported(path)}
            assert not tops & forbidden, path
    for script in SCRIPTS:
        tops = {module.split(".")[0] for module in imported(ROOT / f"{script}.py")}
        assert not tops & {"benchmarks", "experiments"}, script
    assert all(within(name) <= OURS for name in OURS)
    assert within("reference") == within("errors") == set()
    for name in ("console", "run", "distributed"):
        assert not within(name) & {"attacks", "pruning", "data"}, name
    for name in ("attacks", "pruning"):
        assert not within(name) & {"config", "console", "files", "run"}, name


@pytest.fixture
def crowded(tmp_path):
    """A folder with the examples, and with a user's own files of the names that we use."""
    folder = tmp_path / "crowded"
    folder.mkdir()
    for name in OURS - {"__init__"} | SCRIPTS - {"setup"}:
        (folder / f"{name}.py").write_text("raise ImportError('the user\\'s own file')\n")
    for path in EXAMPLES:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("kernels", ["0", pytest.param("1", marks=[
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None,
                       reason="no C++ compiler")])])
@pytest.mark.slow
def test_an_installation_is_the_library_alone_and_runs_the_examples(crowded, tmp_path, kernels):
    source, place = tmp_path / "source", tmp_path / "site"
    ignored = shutil.ignore_patterns("_C_*", "__pycache__")
    for name in ("advprune", "benchmarks", "csrc", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for path in [*ROOT.glob("*.py"), *(ROOT / name for name in (
            "pyproject.toml", "README.md", "LICENSE"))]:
        shutil.copy(path, source)
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target",
           place, source, PYTHONPATH="", ADVPRUNE_KERNELS=kernels)
    about, = place.glob("advprune-*.dist-info")
    assert {path.name for path in place.iterdir()} == {"advprune", about.name}
    assert {path.stem for path in place.glob("advprune/*.py")} == OURS
    needs = {re.match(r"[\w-]+", line)[0] for line in metadata.PathDistribution(about).requires
             if "extra ==" not in line}
    assert not needs & {"tensorboard", "markdown", "pytest"} and "torch" in needs
    built = python("-c", "from advprune import ops; print(ops.KERNELS, ops.__file__)",
                   folder=crowded, PYTHONPATH=str(place)).split()
    assert built[-1] == str(place / "advprune/ops.py")
    assert built[0].startswith("cpu") == (kernels == "1")
    assert len(list(place.glob("advprune/_C_*.so"))) == int(kernels)
    for path in EXAMPLES if kernels == "1" else EXAMPLES[:1]:  # the others take long
        said = python(path.name, folder=crowded, PYTHONPATH=str(place))
        assert re.search(WORDS[path.stem], said), path


@pytest.mark.parametrize("words", [[f"{name}.py"] for name in sorted(SCRIPTS - {"setup"})]
                         + [["-m", "benchmarks"], ["-m", "experiments"]], ids=" ".join)
def test_a_missing_package_is_one_sentence(words):
    """-S: without site-packages."""
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, env={}, text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("other", ["platform = 'win32'", "version_info = (3, 9, 18)"])
def test_an_import_on_another_system_says_what_is_needed(other):
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.{other}; import advprune"],
                          cwd=ROOT, text=True, capture_output=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: advprune needs Python 3.10")


def test_without_git_a_record_has_no_commit(monkeypatch):
    """A checkout in a container, for example."""
    monkeypatch.setenv("PATH", "")
    assert run.environment(torch.device("cpu"))["commit"] is None


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs/promises.md").read_text()
    promises = re.findall(r"`(\w+/test_\w+\.py)(?:::(\w+))?`", text)
    assert len(promises) > 30
    absent = []
    for file, name in promises:
        path = ROOT / "tests" / file
        if not path.exists() or f"def {name or 'test_'}" not in path.read_text():
            absent.append((file, name))
    assert absent == []
