"""Builds the kernels into the package, in `pip install .` and in `make kernels`.

CPU with any C++ compiler; CUDA too where an nvcc of torch's major version and its runtime are.
If something is missing, one line says so, and the plain-torch references are used instead.
ADVPRUNE_KERNELS=0 builds none.
"""
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import setup

# pip builds in an environment of its own, without torch. The installed torch serves as well: the
# build uses its stable ABI. Only where there is none, pip fetches one (setup_requires, below).
sys.path.append(str(Path(__file__).resolve().parent))
site.addsitedir(sysconfig.get_path("purelib"))  # with its .pth files
venv = Path(sys.prefix, "pyvenv.cfg")
if venv.exists() and re.search("include-system-site-packages *= *true", venv.read_text()):
    site.addsitedir(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None

TARGET = "0x020a000000000000"  # LibTorch stable ABI of torch 2.10: one tree for 2.10 and later
NVCC_FLAGS = ["-O3", "-std=c++20", "--fmad=false", "-DUSE_CUDA",
              f"-DTORCH_TARGET_VERSION={TARGET}"]


def cuda_home():
    """The CUDA toolkit to build with, or (None, why not)."""
    if torch.version.cuda is None:
        return None, "this torch is built without CUDA"
    nvcc, why = shutil.which("nvcc"), "there is no nvcc with its headers"
    places = [os.environ.get("CUDA_HOME"), "/usr/local/cuda",
              nvcc and Path(nvcc).resolve().parent.parent]
    for place in map(Path, filter(None, places)):
        # An nvcc on the PATH can be a wrapper script, far from its headers and runtime.
        if (place / "bin/nvcc").exists() and (place / "include/cuda_runtime.h").exists():
            nvcc = place / "bin/nvcc"
            said = subprocess.run([nvcc, "--version"], capture_output=True)
            version = re.search(rb"release (\d+)", said.stdout)
            if version and version[1].decode() == torch.version.cuda.split(".")[0]:
                return str(place), None
            why = f"{place} is not of torch's CUDA {torch.version.cuda}"
    return None, why


def extension():
    from advprune import ops

    compiler, name = os.environ.get("CXX", "c++"), f"advprune.{ops.BUILD}"
    if shutil.which(compiler) is None:
        print(f"advprune: no C++ compiler ({compiler}), so no kernels; plain torch is used")
        return []
    cpu = sorted(glob("csrc/*.cpp"))
    home, why = cuda_home()
    flags = ["-O3", "-std=c++20", "-ffp-contract=off", "-march=native",
             f"-DTORCH_TARGET_VERSION={TARGET}"]
    if home is None:
        print(f"advprune: no CUDA kernels, because {why}; building those for the CPU")
        return [cpp_extension.CppExtension(name, cpu, py_limited_api=True,
                                           extra_compile_args={"cxx": flags})]
    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = home
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")
    return [cpp_extension.CUDAExtension(
        name, [*cpu, "csrc/ops_cuda.cu"], py_limited_api=True,
        extra_compile_args={"cxx": [*flags, "-DUSE_CUDA"], "nvcc": NVCC_FLAGS})]


if __name__ != "__main__":
    pass  # the tests import what is above
elif os.environ.get("ADVPRUNE_KERNELS") == "0":
    setup()
elif torch is None:
    setup(setup_requires=["torch>=2.10", "ninja"])
else:
    setup(ext_modules=extension(), cmdclass={"build_ext": cpp_extension.BuildExtension})
