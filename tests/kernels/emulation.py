"""Builds the kernels of csrc/ops_cuda.cu with the emulator beside this file, and loads them."""
import ctypes
import hashlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

from advprune import files, reference

HERE = Path(__file__).resolve().parent
ROOT, EMULATOR = HERE.parent.parent, HERE / "emulator"
COMPILER = os.environ.get("CXX", "c++")
# The same file in a copy of csrc, and more flags: for mutations and for the sanitizers.
SOURCE = Path(os.environ.get("ADVPRUNE_EMULATED_SOURCE", ROOT / "csrc/ops_cuda.cu"))
BUILDS = ROOT / "build" if SOURCE.parent == ROOT / "csrc" else SOURCE.parent
FLAGS = os.environ.get("ADVPRUNE_EMULATED_FLAGS", "").split()
# A sanitizer's flags, its runtime, which has to be there before Python, and the tests it is for.
SANITIZERS = {"address": (["-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                           "-fsanitize-sections=emulated_shared", "-fno-omit-frame-pointer"],
                          ["libasan.so", "libstdc++.so"],
                          "emulated and not more and not opcheck and not sorts"),
              "thread": (["-fsanitize=thread"], ["libtsan.so"],
                         "emulated and not more and not opcheck and not start_and_step")}


def compiled(source, *flags, needs=()):
    """What this file of the emulator compiles to, built once, named by a digest of all of it."""
    command = [COMPILER, "-std=c++20", "-O1", "-g1", "-Wall", "-Wno-unknown-pragmas",
               f"-I{EMULATOR}", str(source), *flags]
    digest = hashlib.sha256(repr((command, torch.__version__)).encode())
    for file in sorted({*EMULATOR.rglob("*.*"), *needs}):
        digest.update(file.read_bytes())
    path = BUILDS / f"emulated-{source.stem}-{digest.hexdigest()[:12]}"
    path.parent.mkdir(exist_ok=True)

    def make(part):
        done = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return files.made_once(path, make)


def build():
    """The library of the operators advprune_emulated::*, for tensors on the CPU."""
    from torch.utils.cpp_extension import include_paths, library_paths

    import setup

    return compiled(EMULATOR / "operators.cpp", "-shared", "-fPIC", "-ffp-contract=off", *FLAGS,
                    f"-DTORCH_TARGET_VERSION={setup.TARGET}", f'-DSOURCE="{SOURCE}"',
                    *(f"-isystem{path}" for path in include_paths()),
                    *(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10",
                    needs=(SOURCE, *SOURCE.parent.glob("*.*h")))


@cache
def load():
    """Declare and load the emulated operators; returns (the library, what keeps them declared)."""
    path = build()
    declared = torch.library.Library("advprune_emulated", "DEF")
    for name in re.findall(r'm\.impl\("(\w+)"', SOURCE.read_text()):
        operator = reference.OPERATORS[name]
        declared.define(name + operator.schema)
        torch.library.register_fake(f"advprune_emulated::{name}", operator.fake, lib=declared)
    torch.ops.load_library(path)
    return ctypes.CDLL(path), declared


def run_tests(*options, source=SOURCE, sanitizer=None, timeout=None):
    """The emulated tests of the kernels in a process of their own; sanitizers get small ones."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-s",
               "tests/kernels/test_kernels.py", "tests/kernels/test_kernel_paths.py", "-k",
               "emulated", *options]
    env = {**os.environ, "ADVPRUNE_EMULATED_SOURCE": str(source)}
    if sanitizer:
        flags, runtime, tests = SANITIZERS[sanitizer]
        files = [subprocess.check_output([COMPILER, f"-print-file-name={name}"], text=True)
                 for name in runtime]
        env |= {"ADVPRUNE_EMULATED_FLAGS": " ".join(flags), "ASAN_OPTIONS": "detect_leaks=0",
                "TSAN_OPTIONS": "halt_on_error=1", "LD_PRELOAD": " ".join(map(str.strip, files))}
        # At random addresses, the thread sanitizer of many compilers does not start.
        command = ["setarch", "-R", *command, "-k", tests]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env,
                          timeout=timeout)
