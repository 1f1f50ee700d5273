"""The kernels' build: the weights with it and without, a build of other sources, nvcc."""
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TRAINED

from advprune import ops

pytestmark = pytest.mark.skipif("cpu" not in ops.KERNELS,
                                reason="no kernels were built: make kernels says why")


def test_the_same_weights_with_and_without_the_build(trained, tmp_path):
    flags = ["--epoch", "1", "--prune", "low+high", "--p", "0.5"]
    run, plain = trained(*flags), tmp_path / "plain"
    done = subprocess.run([sys.executable, ROOT / "train.py", *TRAINED, *flags, "--out", plain],
                          capture_output=True, text=True,
                          env={**os.environ, "ADVPRUNE_KERNELS": "0"})
    assert done.returncode == 0, done.stderr
    assert (plain / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    kept, wanted = (np.load(folder / "scores.npz")["kept"] for folder in (plain, run))
    assert np.array_equal(kept, wanted)


def test_a_stale_build_is_one_sentence_not_a_crash(tmp_path):
    for name in ("advprune", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("_C_*"))
    package, built = tmp_path / "advprune", next((ROOT / "advprune").glob(f"{ops.BUILD}*.so"))
    code = "import sys; sys.path.insert(0, '.'); from advprune import ops; print(ops.KERNELS)"

    def load():
        return subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path,
                              capture_output=True, text=True)

    (package / "_C_000000000000.abi3.so").symlink_to(built)  # of other sources
    stale = load()
    assert (stale.returncode, stale.stdout.strip()) == (0, "reference")
    assert len(stale.stderr.strip().splitlines()) == 1
    assert "out of date" in stale.stderr
    (package / built.name).write_bytes(b"not a library")
    broken = load()
    assert (broken.returncode, broken.stdout.strip()) == (0, "reference")
    assert "does not load" in broken.stderr


@pytest.mark.slow
def test_nvcc_compiles_without_warnings(tmp_path):
    """For the A100; test_machine_code.py compiles for the H100."""
    import setup as build

    home, why = build.cuda_home()
    if home is None:
        pytest.skip(why)
    from torch.utils.cpp_extension import include_paths

    done = subprocess.run(
        [f"{home}/bin/nvcc", "-c", str(ROOT / "csrc/ops_cuda.cu"), "-o", str(tmp_path / "o.o"),
         "-arch=sm_80", "-std=c++20", "--fmad=false", "-DUSE_CUDA", "-Werror", "all-warnings",
         f"-DTORCH_TARGET_VERSION={build.TARGET}", *(f"-isystem={p}" for p in include_paths()),
         f"-I{ROOT / 'csrc'}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
