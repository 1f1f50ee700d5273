"""benchmark.py machine: what the machine code of the CUDA kernels allows. Computed, not measured.

The model. A thread takes the longest way through its kernel that passes the widest store: each
loop once, one side of each branch, a called routine as one instruction. Of augment, whose threads
go round a loop many times, only this loop counts. What the way stores says how many elements the
thread handles. Then, for each element, time = max(memory, issue, units): memory = bytes /
bandwidth; issue = 4 warp instructions a clock and SM; units = the lanes a clock and SM of LANES,
where a multiply of 64 bits counts twice and a load or store once for each 32 bits. share = memory
/ time is the part of a copy's bandwidth that the instructions leave possible. The model knows no
latency: `in_flight` is what the loads of all threads of a full SM ask for at once, in bytes.
"""
import re
import subprocess

from benchmarks import sass

CARDS = {  # SMs, bytes/s, clock in Hz (the highest boost clock)
    "H100 SXM": (132, 3.35e12, 1.98e9), "H200": (132, 4.8e12, 1.98e9)}
WARPS, REGISTERS, SHARED = 64, 65_536, 228 * 1024  # of an SM
LANES = {"issue": 128, "integer": 64, "multiply": 64, "float32": 128, "float64": 64,
         "special": 16, "uniform": 64, "load/store": 32}
SIZES = {"float": 4, "unsigned char": 1, "Half": 2, "BFloat16": 2}
PIXELS = {"float": "float32", "unsigned char": "uint8", "Half": "float16", "BFloat16": "bfloat16"}
LAYOUTS, MOVES = ("contiguous", "channels last"), {"Start": "rs_start", "Step": "fgsm_step"}
# Threads of a block: THREADS, RGB_THREADS and ALONE of ops_cuda.cu.
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


# --- the way of a thread

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


# --- the model

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
    rows = sorted(map(row_of, sass.compiled()), key=lambda row: ("cards" not in row, row["what"]))
    print("computed from the machine code for sm_90, not measured\n"
          f"{'':44} {'registers':>9} {'occupancy':>9} {'per element: instructions':>25} "
          f"{'bytes':>5}  share of a copy: {', '.join(CARDS)}; the busiest unit")
    for row in rows:
        print(f"{row['what']:44} {row['registers']:>9} {row['occupancy']:>9.0%} "
              + (f"{row['instructions_each']:25.1f} {row['bytes_each']:5}  "
                 + ", ".join(f"{card['share']:.2f}" for card in row["cards"].values())
                 + f"; {row['slowest_unit']} "
                 + ", ".join(f"{card['busy']:.2f}" for card in row["cards"].values())
                 if "cards" in row else ""))
    chosen = [selection([row["kernel"] for row in rows], n, n * 2 // 5)
              for n in (50_000, 10_000_000)]
    for part in chosen:
        print("select_kept of {n:,} scores: launches {launches}, {bytes:,} bytes; three reads and "
              "one write are {least_bytes:,}".format(**part))
    nvcc = subprocess.run([sass.tools()[0], "--version"], capture_output=True, text=True).stdout
    return {"what": "computed, not measured", "arch": "sm_90",
            "nvcc": re.search(r"release [\d.]+, (V[\d.]+)", nvcc)[1],
            "rows": rows, "selection": chosen,
            "cards": {card: dict(zip(("SMs", "bytes_per_second", "hertz"), values, strict=True))
                      for card, values in CARDS.items()}}
