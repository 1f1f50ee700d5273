"""The machine code that nvcc makes of csrc/ops_cuda.cu: compile it, disassemble it, read it.

It needs nvcc, cuobjdump of the CUDA toolkit or of triton, and c++filt. It needs no GPU.
"""
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from advprune import locks
from advprune.cli import UserError

SOURCES = Path(__file__).resolve().parent.parent / "csrc"
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/ +(@!?U?P\w+)? *([A-Z][\w.]*)([^;]*);")
USE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
CLASSES = {  # the first pattern that an instruction begins with or holds
    "global": r"(LDG|STG|LD|ST|ATOMG?|REDG?)\b", "local": r"(LDL|STL)\b",
    "shared": r"(LDS|STS|ATOMS|SHFL)\b", "float64": r"D(ADD|MUL|FMA|SETP|MNMX)\b|.*(F64|RCP64H)",
    "special": r"MUFU", "convert": r"(I2FP?|F2IP?|F2FP?|FRND|I2I)\b", "wide": r"IMAD\.(WIDE|HI)",
    "multiply": r"(IMAD|IMUL)", "float32": r"(FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2)\b",
    "call": r"CALL", "branch": r"(BRA|BRX|BSSY|BSYNC|BREAK|EXIT|RET|BAR|BPT|WARPSYNC|END|NOP)",
    "uniform": r"(U[A-Z]|R2UR|S2UR|VOTEU)", "other": r"(LDC|S2R|CS2R|LEPC|NANOSLEEP|MEMBAR|FENCE|"
    r"ERRBAR|CCTL|YIELD|DEPBAR)", "integer": r""}  # integer: also moves, compares and selects


@dataclass(frozen=True)
class Instruction:
    at: int  # address in bytes
    guard: str  # "@P0": runs only where the predicate holds
    op: str
    operands: str

    @property
    def kind(self):
        return next(name for name, begins in CLASSES.items() if re.match(begins, self.op))

    @property
    def bits(self):
        """The width of a load or store."""
        found = re.search(r"\.U?S?(8|16|64|128)\b", self.op)
        return int(found[1]) if found else 32

    @property
    def target(self):
        """Where a branch goes; None for others, and for calls, which come back."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if found and self.op.startswith("BRA") else None

    @property
    def falls_through(self):
        """Whether the next instruction can come after it."""
        always = not self.guard and ("DIV" not in self.op) and "P" not in self.operands
        return not (always and re.match(r"(BRA|EXIT|RET)\b", self.op))


@dataclass(frozen=True)
class Kernel:
    name: str  # as rs_start_kernel<float, float>
    registers: int
    stack: int
    shared: int
    local: int
    code: tuple  # of Instruction

    def counts(self):
        """Class -> number of instructions in the file, whether they run or not."""
        return Counter(i.kind for i in self.code)

    def accesses(self, op):
        """Width in bits -> how many LDG or STG of it."""
        return Counter(i.bits for i in self.code if i.op.split(".")[0] == op)


def short(name):
    """A demangled kernel without its arguments and name spaces: wide_kernel<0, Start, float>."""
    name = re.sub(r"\(anonymous namespace\)::|(torch::headeronly|advprune|c10)::", "", name)
    found = re.match(r"(?:void )?(\w+(?:<.*?>)?)\(", re.sub(r"\(\w+\)(?=\d)", "", name))
    return found[1] if found else name


def kernels(text):
    """The kernels in the output of cuobjdump --dump-resource-usage --dump-sass."""
    used = {name: list(map(int, rest)) for name, *rest in USE.findall(text)}
    parts = re.split(r"Function : (\S+)\n", text)[1:]
    names, found = demangled(used), []
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        code = [Instruction(int(at, 16), guard, op, operands.strip())
                for at, guard, op, operands in LINE.findall(body)]
        while code and (code[-1].op == "NOP" or code[-1].target == code[-1].at):
            code.pop()  # what fills the last lines of the cache
        found.append(Kernel(short(names[name]), *used[name], tuple(code)))
    return sorted(found, key=lambda kernel: kernel.name)


def demangled(names):
    """Mangled -> demangled."""
    done = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


# --- the tools

def tools():
    """(nvcc, cuobjdump); a UserError says what is missing."""
    import setup

    home, why = setup.cuda_home()
    if home is None:
        raise UserError(f"the machine code needs nvcc: {why}")
    triton = find_spec("triton")
    places = [f"{home}/bin", *(f"{place}/backends/nvidia/bin"
                               for place in (triton.submodule_search_locations if triton else []))]
    dump = next((f"{place}/cuobjdump" for place in places if Path(place, "cuobjdump").exists()),
                None)
    if dump is None:
        raise UserError(f"there is no cuobjdump in {' or '.join(places)}")
    if shutil.which("c++filt") is None:
        raise UserError("there is no c++filt; it comes with the binutils")
    return f"{home}/bin/nvcc", dump


def disassembled(folder=SOURCES, arch="sm_90"):
    """What cuobjdump says of ops_cuda.cu in this folder; compiled once for what it is made of."""
    from torch.utils import cpp_extension as extension

    import setup

    nvcc, dump = tools()
    command = [nvcc, "--cubin", f"-arch={arch}", *extension.COMMON_NVCC_FLAGS, *setup.NVCC_FLAGS,
               *(f"-isystem={path}" for path in extension.include_paths("cuda"))]
    version = subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(repr((command, extension.torch.__version__)).encode() + version)
    for file in (folder / "ops_cuda.cu", *sorted(folder.glob("*.h"))):
        digest.update(file.read_bytes())
    path = Path(tempfile.gettempdir(), f"advprune-{os.getuid()}-{digest.hexdigest()[:16]}.sass")

    def make(part):
        cubin = path.with_suffix(".cubin")
        done = subprocess.run([*command, str(folder / "ops_cuda.cu"), "-o", str(cubin)],
                              capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        part.write_bytes(subprocess.run(
            [dump, "--dump-resource-usage", "--dump-sass", str(cubin)], capture_output=True,
            check=True).stdout)
        cubin.unlink()

    return locks.made_once(path, make).read_text()  # parallel tests compile it once


def compiled(folder=SOURCES):
    """The kernels of ops_cuda.cu, as nvcc compiles them for the H100 and the H200."""
    return kernels(disassembled(folder))
