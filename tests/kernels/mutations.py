"""Shows that the tests notice each barrier and each bounds check of csrc/*.cuh.

    python tests/kernels/mutations.py [WORD]

It takes them out one at a time (with WORD, those in lines that contain it), compiles what is left
with the emulator, and prints which test fails. Where none does, the sanitizers have a try.
"""
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import emulation

WITHIN = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"  # parentheses, and what is in them
TERM = r"[\w.]+(?:\[\w+\])?"
MUTATIONS = [  # of a line: a pattern, and what takes its place
    (r"__syncthreads\(\);", ""),
    (r"atomicAdd\(&(.*?), ([^,]+)\);", r"\1 += \2;"),
    (rf"if {WITHIN} (?=return|break|continue|__trap)", "if (false) "),
    (rf"if {WITHIN} (?=\w+\[)", "if (true) "),  # a check of where to write
    (rf"(?<!== )\b{TERM}(?: < {TERM})? \? ", "true ? "),
    (rf"{TERM} (?:<|>|<=|>=) {TERM} && ", ""),
    (rf" && {TERM} (?:<|>|<=|>=) {TERM}(?=;)", ""),
    (rf"{TERM} (?:<|>|<=|>=) {TERM} \|\| ", ""),
    (rf" \|\| {TERM} (?:<|>|<=|>=) {TERM}(?=\))", ""),
    (rf"(for \([^;]*; {TERM}) < (?=\D)", r"\1 <= "),
    (rf"(for \([^;]*; {TERM}) < (?=\d \*)", r"\1 <= "),
    (r"(?:std::)?\bmin(?:<\w+>)?\(([^,]+), ((?:[^()]|\([^()]*\))+)\)", r"\1"),
    (r"(?:std::)?\bmin(?:<\w+>)?\(([^,]+), ((?:[^()]|\([^()]*\))+)\)", r"\2"),
]
UNSEEN = {  # what no test can see, and why
    "if (false) return;  // RGB's threads have to meet": "the loop checks as well, for RGB",
    "if (local[bin]) counts[bin] += (unsigned long long)local[bin];": "blocks run in turn here",
    "return b * size + (true ? e % area * channels + e / area : e);": "a division for one channel",
    "int count = (int)l.size - first;": "no example has 2^31 elements, and loops end at 4",
    "int across = (int)THREADS, down = THREADS / across;": "narrow images would idle threads",
    "int threads = (int)THREADS;": "a small example would have idle threads",
    "(unsigned)TALLEST);": "a small batch would have idle blocks",
    "dim3 blocks((unsigned)batch, (unsigned)TALLEST);": "a small image would have idle blocks",
    "if (false) break;  // what is not finite has been counted": "no id is written without it",
    "for (int pass = 0; pass <= PASSES; pass++) {": "no finite score has its last digits alone",
    "int first = (int)threadIdx.x * run;": "a thread with a count below 0 reads nothing",
    "for (int64_t first = 0; first <= chunks; first += THREADS) {": "a turn without a chunk",
    "unsigned wide = (unsigned)chunks;": "many blocks would clear as many histograms",
    "unsigned wide = (unsigned)2048;": "few scores would have idle blocks",
}


def mutations(text, word=""):
    """(line number, the line, the line without the check, the whole text without it)"""
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        code = line.split("//")[0]
        for pattern, instead in MUTATIONS:
            for match in re.finditer(pattern, code):
                changed = line[:match.start()] + match.expand(instead) + line[match.end():]
                if word in line and changed.strip() not in UNSEEN:
                    yield i + 1, line.strip(), changed.strip(), "".join(
                        [*lines[:i], changed, *lines[i + 1:]])


def catcher(source, sanitizer=None):
    """The test that fails with this source, or None."""
    try:
        done = emulation.run_tests("-x", source=source, sanitizer=sanitizer, timeout=300)
    except subprocess.TimeoutExpired:
        return "a test that does not end"
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) \S+?::(\S+)", done.stdout, re.M)
    died = re.search(r"SUMMARY: (.*)|in (test_\w+)", done.stderr)  # a sanitizer, faulthandler
    return failed[1] if failed else f"the end of the process ({died[0] if died else '?'})"


def survivors(word="", part=0, parts=1):
    """Prints each mutation and the test that catches it; returns those that none catches.

    Of all mutations it tries every `parts`-th, from `part` on.
    """
    missed, kernels = [], emulation.SOURCE.parent
    found = [(file, *mutation) for file in sorted(kernels.glob("*.cuh"))
             for mutation in mutations(file.read_text(), word)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(kernels, Path(folder) / "csrc"), emulation.SOURCE.name)
        for file, number, line, changed, text in found[part::parts]:
            source.with_name(file.name).write_text(text)
            for sanitizer in (None, *emulation.SANITIZERS):
                if caught := catcher(source, sanitizer):
                    break
            shutil.copy(file, source.parent)
            print(f"{file.name}:{number}: {line}\n    now: {changed or 'nothing'}\n    caught by "
                  f"{caught or 'NO TEST'}{f', {sanitizer} sanitizer' if sanitizer else ''}",
                  flush=True)
            missed += [] if caught else [(file.name, number, line, changed)]
    return missed


if __name__ == "__main__":
    sys.exit(1 if survivors(*sys.argv[1:]) else 0)
