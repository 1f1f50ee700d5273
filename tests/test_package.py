"""The package as others use it: what imports what, the examples, an installation."""
import ast
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
WORDS = {"own_loop": r"1078 kept; accuracy \d\d", "own_network": r"dropped of each digit: \[\d",
         "operators": r"kernels: \w+.* 600 kept"}
OURS = {path.stem for path in (ROOT / "advprune").glob("*.py")}


def python(*args, folder=".", **env):
    done = subprocess.run([sys.executable, *map(str, args)], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", **env})
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported(path):
    """The modules that a file imports anywhere: advprune's by their names there."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= ({f"advprune.{alias.name}" for alias in node.names}
                      if node.module == "advprune" else {node.module})
    return found


def test_imports_go_one_way():
    scripts = {path.stem for path in ROOT.glob("*.py")} | {"benchmarks"}
    uses = {name: imported(ROOT / f"advprune/{name}.py") for name in OURS}
    within = {name: {module.split(".")[1] for module in modules if module.startswith("advprune.")}
              for name, modules in uses.items()}
    for name, modules in uses.items():
        assert not {module.split(".")[0] for module in modules} & scripts, name
        assert within[name] <= OURS, name
    assert within["references"] == set()
    assert within["ops"] == {"references"}
    assert within["attacks"] == {"ops"}
    for name in ("cli", "runs", "processes"):
        assert not within[name] & {"attacks", "ops", "pruning", "models", "data"}, name
    assert "models" not in within["data"]
    assert "data" not in within["models"]


@pytest.mark.parametrize(("module", "absent"), [
    ("ops", ["numpy.random.mtrand", "torchvision", "PIL", "matplotlib", "sklearn", "scipy",
             "safetensors", "tqdm"]),
    ("pruning", ["torchvision", "PIL", "matplotlib", "sklearn", "scipy", "safetensors"])])
def test_an_import_loads_no_more_than_it_says(module, absent):
    loaded = python("-c", f"import torch, sys; before = set(sys.modules); "
                    f"from advprune import {module}; print(*set(sys.modules) - before)",
                    PYTHONPATH=str(ROOT)).split()
    assert not [name for name in absent if any((f"{m}.").startswith(f"{name}.") for m in loaded)]
    if module == "ops":
        assert {name for name in loaded if name.startswith("advprune")} == {
            "advprune", "advprune.ops", "advprune.references"}


def test_no_python_file_is_long():
    files = [path for folder in (".", "advprune", "benchmarks", "examples", "tests")
             for path in (ROOT / folder).glob("*.py")]
    lengths = {path.name: len(path.read_text().splitlines()) for path in files}
    long = {name: lines for name, lines in lengths.items() if lines > 300}
    assert long == {}
    assert all(lengths[path.name] <= 20 for path in EXAMPLES)


@pytest.fixture
def crowded(tmp_path):
    """A folder with the examples, and with a user's own files of the names that we use."""
    folder = tmp_path / "crowded"
    folder.mkdir()
    for name in OURS - {"__init__"} | {"train", "prune", "evaluate"}:
        (folder / f"{name}.py").write_text("raise ImportError('the user\\'s own file')\n")
    for path in EXAMPLES:
        shutil.copy(path, folder)
    return folder


def check_examples(folder, **env):
    for path in EXAMPLES:
        assert re.search(WORDS[path.stem], python(path.name, folder=folder, **env)), path


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_the_examples_run_beside_files_of_the_same_names(crowded, kernels):
    check_examples(crowded, PYTHONPATH=str(ROOT), ADVPRUNE_KERNELS=kernels)


@pytest.mark.slow  # it compiles the kernels: half a minute
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="no C++ compiler")
def test_an_installed_package_brings_its_kernels_and_runs_the_examples(crowded, tmp_path):
    source, place = tmp_path / "source", tmp_path / "site"
    for name in ("advprune", "csrc"):
        shutil.copytree(ROOT / name, source / name,
                        ignore=shutil.ignore_patterns("_C_*", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target",
           place, source, PYTHONPATH="")
    code = "from advprune import ops; print(ops.KERNELS, ops.__file__)"
    kernels, file = python("-c", code, folder=crowded, PYTHONPATH=str(place)).split()
    assert kernels.startswith("cpu")
    assert file == str(place / "advprune/ops.py")
    assert len(list(place.glob("advprune/_C_*.so"))) == 1
    check_examples(crowded, PYTHONPATH=str(place))


def test_every_promise_names_tests_that_exist():
    promises = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", (ROOT / "docs/promises.md").read_text())
    assert len(promises) > 30
    for file, name in promises:
        assert f"def {name or 'test_'}" in (ROOT / "tests" / file).read_text(), (file, name)
