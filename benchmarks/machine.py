"""python -m benchmarks machine: what the CUDA kernels' machine code allows. Nothing is measured.

nvcc compiles csrc/ops_cuda.cu, cuobjdump (of the CUDA toolkit or of triton) disassembles it, and
c++filt reads the names. No GPU is needed.

The model. A thread takes the longest way through its kernel that passes the widest store: each
loop once, one side of each branch, a called routine as one instruction. Of augment, whose threads
go round a loop many times, only this loop counts. What the way stores says how many elements the
thread handles. Then, for each element, time = max(memory, issue, units): memory = bytes /
bandwidth; issue = 4 warp instructions a clock and SM; units = the lanes a clock and SM of LANES,
where a multiply of 64 bits counts twice and a load or store once for each 32 bits. share = memory
/ time is the part of a copy's bandwidth that the instructions leave possible. The model knows no
latency: `in_flight` is what the loads of all threads of a full SM ask for at once, in bytes.
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

from advprune import files
from advprune.errors import UserError

SOURCES = Path(__file__).resolve().parent.parent / "csrc"


# --- the machine code

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


def compiled(folder=SOURCES):
    """The kernels of ops_cuda.cu, as nvcc compiles them for the H100 and the H200."""
    return kernels(disassembled(folder))


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
    for file in (folder / "ops_cuda.cu", *sorted(folder.glob("*.*h"))):
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

    return files.made_once(path, make).read_text()  # parallel tests compile it once


# --- the model

CARDS = {  # SMs, bytes/s, clock in Hz (the highest boost clock)
    "H100 SXM": (132, 3.35e12, 1.98e9), "H200": (132, 4.8e12, 1.98e9)}
WARPS, REGISTERS, SHARED = 64, 65_536, 228 * 1024  # of an SM
LANES = {"issue": 128, "integer": 64, "multiply": 64, "float32": 128, "float64": 64,
         "special": 16, "uniform": 64, "load/store": 32}
SIZES = {"float": 4, "unsigned char": 1, "Half": 2, "BFloat16": 2}
PIXELS = {"float": "float32", "unsigned char": "uint8", "Half": "float16", "BFloat16": "bfloat16"}
LAYOUTS, MOVES = ("contiguous", "channels last"), {"Start": "rs_start", "Step": "fgsm_step"}
# Threads of a block: THREADS, RGB_THREADS and ALONE of csrc.
BLOCK, BLOCK_RGB, BLOCK_ALONE = 256, 192, 1024
SELECTION = {  # what select_kept launches: how often, and how often that reads all scores
    "begin_kernel": (1, 0), "histogram_kernel": (3, 3), "advance_kernel": (3, 0),
    "tally_kernel": (1, 1), "scan_kernel": (1, 0), "write_kernel": (1, 1)}
ALONE = "select_kernel", (1, 1)  # instead of all these, where the keys fit one block's memory:
FIT = (227 * 1024 - 4096) // 4 - 2 * 2048  # all that a block may have, without the histograms


def wide(kernel):
    """(operator, layout, In, Out) of a kernel of RS+FGSM that moves four elements at once."""
    found = re.match(r"wide_kernel<(\d), (\w+), ([\w ]+), ([\w ]+)>", kernel.name)
    return found and (MOVES[found[2]], LAYOUTS[int(found[1])], found[3], found[4])


def longest(code, first, ends):
    """Indices of the longest way from first to one of ends, by branches that go forward alone."""
    index, best = {i.at: n for n, i in enumerate(code)}, {}
    for n in range(len(code) - 1, first - 1, -1):
        step, target = code[n], index.get(code[n].target, -1)
        nexts = [m for m in ([n + 1] if step.falls_through else []) + [target]
                 if m > n and m in best]
        if nexts or n in ends:
            best[n] = (1 + max((best[m][0] for m in nexts), default=0),
                       max(nexts, key=lambda m: best[m][0], default=None))
    way, n = [], first if first in best else None
    while n is not None:
        way.append(n)
        n = best[n][1]
    return way


def stored(code):
    """How many bits the instructions write to global memory."""
    return sum(i.bits for i in code if i.op.startswith("STG"))


def loop(code):
    """The innermost loop that loads and stores; of several, the one that stores the most."""

    def moves(body):
        return stored(body) and any(i.op.startswith("LDG") for i in body)

    index = {i.at: n for n, i in enumerate(code)}
    loops = [(index[i.target], n) for n, i in enumerate(code)
             if i.target is not None and index[i.target] < n]
    loops = [code[a:b + 1] for a, b in loops if moves(code[a:b + 1])
             and not any(a <= c and d <= b and (c, d) != (a, b) and moves(code[c:d + 1])
                         for c, d in loops)]
    return max(loops, key=stored)


def way(kernel):
    """The instructions on the longest way that passes the widest store."""
    code = kernel.code
    if kernel.name.startswith("augment"):
        code = loop(code)
        ends = {len(code) - 1}
    else:
        ends = {n for n, i in enumerate(code) if i.op == "EXIT"}
    widest = max(i.bits for i in code if i.op.startswith("STG"))
    there = longest(code, 0, {n for n, i in enumerate(code)
                              if i.op.startswith("STG") and i.bits == widest})
    return [code[n] for n in there[:-1] + longest(code, there[-1], ends)]


def occupancy(kernel):
    """The share of an SM's warps that can be there at once."""
    rgb = wide(kernel) and wide(kernel)[1] == "channels last"
    warps = (BLOCK_RGB if rgb else BLOCK_ALONE if kernel.name == ALONE[0] else BLOCK) // 32
    a_warp = -(-kernel.registers // 8) * 8 * 32  # in steps of 256, from the fourth of its warp
    blocks = min(WARPS // warps, 4 * (REGISTERS // 4 // a_warp) // warps,
                 SHARED // max(kernel.shared, 1024))
    return blocks * warps / WARPS


def clocks(instructions):
    """Unit -> clocks of an SM for these instructions of one thread."""
    work = dict.fromkeys(LANES, 0.0)
    work["issue"] = len(instructions)
    for i in instructions:
        unit = {"convert": "integer", "wide": "multiply", "global": "load/store",
                "local": "load/store", "shared": "load/store"}.get(i.kind, i.kind)
        if unit in LANES:
            work[unit] += (2 if i.kind == "wide" else
                           max(1, i.bits / 32) if unit == "load/store" else 1)
    return {unit: count / LANES[unit] for unit, count in work.items()}


def moved(kernel):
    """(bytes read, bytes written) for an element; None for kernels that the model leaves out."""
    if kernel.name.startswith("augment"):
        return 1, 4
    if not wide(kernel):
        return None
    operator, _, x, out = wide(kernel)
    return SIZES[x] + SIZES[out] * (operator == "fgsm_step"), SIZES[out]


def model(kernel):
    """What a thread does for each element, and the share of a copy's bandwidth on each card."""
    steps, (read, written) = way(kernel), moved(kernel)
    elements = stored(steps) / 8 / written
    busy = {unit: value / elements for unit, value in clocks(steps).items()}
    slowest = max(busy, key=busy.get)
    found = {"elements": elements, "instructions_each": len(steps) / elements,
             "bytes_each": read + written, "slowest_unit": slowest,
             "in_flight": occupancy(kernel) * WARPS * 32 * elements * read, "cards": {}}
    for card, (sms, bandwidth, clock) in CARDS.items():
        memory = (read + written) / bandwidth * sms * clock  # in clocks of an SM
        found["cards"][card] = {"busy": busy[slowest] / memory,
                                "share": memory / max(memory, busy[slowest])}
    return found


def selection(names, n, drop):
    """The launches and the bytes of select_kept, beside those of three reads and one write."""
    alone = ALONE[0] in names and n <= FIT
    launches, reads = ALONE[1] if alone else map(sum, zip(*SELECTION.values(), strict=True))
    written = 8 * (n - drop)  # ids of 64 bits
    return {"n": n, "drop": drop, "launches": launches, "reads": reads,
            "bytes": 4 * n * reads + written, "least_bytes": 4 * n * 3 + written}


# --- the record

def row_of(kernel):
    operator, layout, x, _ = wide(kernel) or (kernel.name, "", "", "")
    row = {"kernel": kernel.name,
           "what": f"{operator}, {layout}, {PIXELS[x]}" if layout else kernel.name,
           "registers": kernel.registers, "stack": kernel.stack,
           "local": kernel.local, "shared": kernel.shared, "occupancy": occupancy(kernel),
           "instructions": len(kernel.code), "counts": dict(kernel.counts())}
    return row | (model(kernel) if moved(kernel) else {})


def measure(args, device):
    """A row for each kernel, those of the model first."""
    rows = sorted(map(row_of, compiled()), key=lambda row: ("cards" not in row, row["what"]))
    chosen = [selection([row["kernel"] for row in rows], n, n * 2 // 5)
              for n in (50_000, 10_000_000)]
    nvcc = subprocess.run([tools()[0], "--version"], capture_output=True, text=True).stdout
    return {"what": "computed, not measured", "arch": "sm_90",
            "nvcc": re.search(r"release [\d.]+, (V[\d.]+)", nvcc)[1],
            "rows": rows, "selection": chosen,
            "cards": {card: dict(zip(("SMs", "bytes_per_second", "hertz"), values, strict=True))
                      for card, values in CARDS.items()}}
