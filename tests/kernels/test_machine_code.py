"""What would make the CUDA kernels slow, looked for in their machine code. Nothing runs.

nvcc compiles csrc/ops_cuda.cu for the H100, cuobjdump (of the CUDA toolkit or of triton)
disassembles it, and c++filt reads the names.
"""
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT
from torch.utils import cpp_extension

import setup
from advprune import files

FUNCTION = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
LINE = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+)? *([A-Z][\w.]*)[^;]*;")
SLOW = {  # what must not be in a kernel that only moves elements
    "local": r"(LDL|STL)\b", "float64": r"D(ADD|MUL|FMA|SETP|MNMX)\b|.*(F64|RCP64H)",
    "special": r"MUFU", "call": r"CALL"}
# Of 65,536 registers of an SM, 32 a thread let all of its 2,048 threads be there at once, 40 let
# three quarters, 64 half. The kernels of one block may have more.
REGISTERS = {"wide_kernel": 40, "any_kernel": 64, "augment_kernel": 64, "cross_entropy_kernel": 40,
             "begin_kernel": 32, "histogram_kernel": 32, "advance_kernel": 64, "tally_kernel": 40,
             "scan_kernel": 128, "write_kernel": 64, "select_kernel": 64}
SIZES = {"float": 4, "unsigned char": 1, "Half": 2, "BFloat16": 2}
TYPES = [("float", "float"), ("Half", "Half"), ("BFloat16", "BFloat16")]
WIDE = [(layout, operator, *types) for operator in ("Start", "Step")
        for layout in ("0", "1") for types in TYPES]  # contiguous, channels last
WIDE += [("0", operator, "unsigned char", "float") for operator in ("Start", "Step")]


class Kernel(NamedTuple):
    name: str  # as wide_kernel<0, Start, float, float>
    registers: int
    stack: int
    local: int
    code: list  # the instructions' names, with what they add: LDG.E.128

    @property
    def template(self):
        return self.name.split("<")[0]

    @property
    def wide(self):
        """(layout, operator, In, Out) of a kernel that moves four elements at once."""
        return tuple(re.split(r", |<|>", self.name)[1:-1]) if "wide_kernel" in self.name else None

    @property
    def slow(self):
        """Kind of SLOW -> how many instructions of it there are, whether they run or not."""
        return Counter(kind for name in self.code for kind, begins in SLOW.items()
                       if re.match(begins, name))

    def widths(self, op):
        """(place, bits) of each LDG or STG."""
        return [(i, int((re.search(r"\.U?S?(8|16|64|128)\b", name) or [0, 32])[1]))
                for i, name in enumerate(self.code) if name.split(".")[0] == op]


def short(name):
    """A demangled kernel without its arguments and name spaces: wide_kernel<0, Start, float>."""
    name = re.sub(r"\(anonymous namespace\)::|(torch::headeronly|advprune|c10)::", "", name)
    found = re.match(r"(?:void )?(\w+(?:<.*?>)?)\(", re.sub(r"\(\w+\)(?=\d)", "", name))
    return found[1] if found else name


def read(text):
    """The kernels in the output of cuobjdump --dump-resource-usage --dump-sass."""
    used = {name: map(int, rest) for name, *rest in FUNCTION.findall(text)}
    parts = re.split(r"Function : (\S+)\n", text)[1:]
    done = subprocess.run(["c++filt", *used], capture_output=True, text=True, check=True)
    names = dict(zip(used, done.stdout.splitlines(), strict=True))
    return [Kernel(short(names[name]), *used[name], LINE.findall(body))
            for name, body in zip(parts[::2], parts[1::2], strict=True)]


@pytest.fixture(scope="session")
def kernels():
    """The kernels of ops_cuda.cu, compiled once for what they are made of."""
    home, why = setup.cuda_home()
    if home is None:
        pytest.skip(f"the machine code needs nvcc: {why}")
    triton = find_spec("triton")
    dump = shutil.which("cuobjdump", path=os.pathsep.join(
        [f"{home}/bin", *(f"{place}/backends/nvidia/bin" for place in (
            triton.submodule_search_locations if triton else []))]))
    if not (dump and shutil.which("c++filt")):
        pytest.skip("there is no cuobjdump, or no c++filt")
    nvcc, source = f"{home}/bin/nvcc", ROOT / "csrc/ops_cuda.cu"
    command = [nvcc, "--cubin", "-arch=sm_90", *cpp_extension.COMMON_NVCC_FLAGS, *setup.NVCC_FLAGS,
               *(f"-isystem={path}" for path in cpp_extension.include_paths("cuda")), str(source)]
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((command, torch.__version__)).encode() + version)
    for file in (source, *sorted(source.parent.glob("*.*h"))):
        digest.update(file.read_bytes())
    path = Path(tempfile.gettempdir(), f"advprune-{os.getuid()}-{digest.hexdigest()[:16]}.sass")

    def make(part):
        cubin = path.with_suffix(".cubin")
        subprocess.run([*command, "-o", str(cubin)], check=True)
        part.write_bytes(subprocess.run(
            [dump, "--dump-resource-usage", "--dump-sass", str(cubin)], capture_output=True,
            check=True).stdout)
        cubin.unlink()

    return read(files.made_once(path, make).read_text())  # parallel tests compile it once


def test_no_kernel_spills(kernels):
    """No variable of a thread lies in memory instead of registers."""
    assert [k.name for k in kernels if k.stack or k.local or k.slow["local"]] == []


def test_registers(kernels):
    assert {k.template for k in kernels} == REGISTERS.keys()
    assert [(k.name, k.registers) for k in kernels if k.registers > REGISTERS[k.template]] == []


@pytest.mark.parametrize("which", WIDE, ids=", ".join)
def test_the_wide_path(kernels, which):
    """Four elements are read and written at once, and the noise is made while the reads are."""
    (kernel,) = [k for k in kernels if k.wide == which]
    _, operator, x, out = which
    assert not kernel.slow
    assert {bits for _, bits in kernel.widths("STG")} == {32 * SIZES[out]}
    assert min(bits for _, bits in kernel.widths("LDG")) >= 32  # an id, or four of uint8
    loads = [(i, bits) for i, bits in kernel.widths("LDG") if bits > 32]
    read = [x] * (x != "unsigned char") + [out] * (operator == "Step")
    assert {bits for _, bits in loads} == {32 * SIZES[kind] for kind in read}
    assert len(loads) >= len(read)
    if loads:
        last = max(i for i, _ in loads)
        noise = [name for name in kernel.code[last:] if re.match(r"IMAD\.(WIDE|HI)", name)]
        assert len(noise) >= 15  # of 20: the loads are under way meanwhile


NAME = "_ZN8advprune12_GLOBAL__N_111wide_kernelILNS0_4PathE0ENS0_5StartEffEEvv"
TEXT = f"""
Resource usage:
 Function {NAME}:
  REG:33 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0
		Function : {NAME}
        /*0000*/                   LDC R1, c[0x0][0x28] ;     /* 0x00000a00ff017b82 */
        /*0010*/               @P0 EXIT ;
        /*0020*/                   LDG.E.128 R8, desc[UR24][R10.64] ;
        /*0060*/                   DADD R28, R6, -1 ;
        /*00b0*/                   STG.E.128 desc[UR24][R24.64], R8 ;
        /*00e0*/              @!P0 LDL R3, [R1] ;
        /*00f0*/                   STG.E desc[UR24][R24.64], R3 ;
        /*0100*/                   CALL.REL.NOINC 0x120 ;
        /*0120*/                   MUFU.RCP R0, R35 ;
"""


@pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt comes with the binutils")
def test_the_reader_by_hand():
    (kernel,) = read(TEXT)
    assert kernel.name == "wide_kernel<0, Start, float, float>"
    assert kernel.wide == ("0", "Start", "float", "float")
    assert kernel[1:4] == (33, 16, 8)
    assert kernel.slow == dict.fromkeys(SLOW, 1)
    assert kernel.widths("STG") == [(4, 128), (6, 32)] and kernel.widths("LDG") == [(2, 128)]
