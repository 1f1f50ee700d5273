"""The emulator of CUDA itself: what it runs, what it refuses, and the kernels under sanitizers."""
import re
import shutil
import subprocess

import emulation
import mutations
import pytest

pytestmark = pytest.mark.skipif(shutil.which(emulation.COMPILER) is None,
                                reason=f"the C++ compiler {emulation.COMPILER} is not here")


@pytest.fixture(scope="session")
def misuse():
    """misuse(name, seed): what a kernel of emulator/misuse.cpp says, under sanitizers."""
    flags = emulation.SANITIZERS["address"][0]
    program = emulation.compiled(emulation.EMULATOR / "misuse.cpp", *flags)

    def run(name, seed=0):
        return subprocess.run([program, name, str(seed)], capture_output=True, text=True,
                              timeout=100)

    return run


def numbers(done):
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@pytest.mark.parametrize(("name", "says"), [
    ("barrier_for_half", "16 of the 64 threads of a block wait here for others that never come: "
                         "48 have returned, 0 wait elsewhere"),
    ("barrier_against_shuffle", "32 of the 64 threads of a block wait here for others"),
    ("shuffle_for_half", "16 of the 32 threads of a warp meet here for others that never come: "
                         "16 have returned, 0 wait elsewhere"),
    ("shuffle_not_in_mask", "a lane is not in its own mask"),
    ("block_of_another_size", "the block is of another size"),
    ("many_threads", "no card launches 1 x 1 x 1 blocks of 32 x 33 x 1 threads"),
    ("tall_grid", "no card launches 1 x 65536 x 1 blocks of 1 x 1 x 1 threads"),
])
def test_an_error_is_one_sentence(misuse, name, says):
    done = misuse(name)
    first, second = done.stdout.splitlines()  # it says the same when it is launched again
    assert says in first
    assert says in second
    assert "launches" in says or first.startswith("misuse.cpp:")
    assert done.returncode == 0, done.stderr


def test_shared_memory_is_garbage_at_first(misuse):
    assert numbers(misuse("unset"))[:4] == [0xCDCDCDCD] * 4


def test_a_missing_barrier_is_seen(misuse):
    right = [63 - i for i in range(64)]
    orders = [numbers(misuse("race", seed))[:64] for seed in range(3)]
    assert right not in orders
    assert orders[0] != orders[1]
    assert numbers(misuse("race", 0))[:64] == orders[0]
    assert all(numbers(misuse("neighbours", seed))[:64] == right for seed in range(3))


def test_the_sanitizer_sees_shared_memory(misuse):
    assert numbers(misuse("within"))[:64] == [1] * 64
    done = misuse("beyond")
    assert done.returncode != 0
    assert "AddressSanitizer: global-buffer-overflow" in done.stderr


def test_shuffles_and_atomics(misuse):
    assert numbers(misuse("sums"))[:64] == [sum(range(32))] * 32 + [sum(range(32, 64))] * 32
    ranks = numbers(misuse("ranks"))
    assert sorted(ranks) == list(range(128, 256))  # those of the last launch
    blocks = [ranks[i:i + 32] for i in range(0, 128, 32)]
    assert blocks[0] != sorted(blocks[0])
    assert blocks != sorted(blocks)


sanitizers = pytest.mark.skipif(shutil.which("setarch") is None, reason="setarch is missing")


@pytest.mark.slow
@sanitizers
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_the_kernels_under_sanitizers(sanitizer):
    done = emulation.run_tests(sanitizer=sanitizer)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 30


@sanitizers
@pytest.mark.slow
def test_the_thread_sanitizer_sees_a_race():
    program = emulation.compiled(emulation.EMULATOR / "misuse.cpp", "-fsanitize=thread")
    for name, code in (("neighbours", 0), ("sums", 0), ("ranks", 0), ("race", 66)):
        done = subprocess.run(["setarch", "-R", program, name, "0"], capture_output=True,
                              text=True, timeout=100)
        assert done.returncode == code, done.stderr
        assert ("data race" in done.stderr) == (name == "race")


@pytest.mark.mutation
@pytest.mark.parametrize("part", range(8))
def test_each_barrier_and_bounds_check_is_noticed(part):
    assert mutations.survivors(part=part, parts=8) == []
