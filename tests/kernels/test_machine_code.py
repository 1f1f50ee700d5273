"""What decides the speed of the CUDA kernels, read from their machine code. Nothing runs."""
import json
import shutil

import pytest
from conftest import ROOT

from advprune.errors import UserError
from benchmarks import __main__ as benchmark
from benchmarks import machine

# Of 65,536 registers of an SM, 32 a thread let all of its 2,048 threads be there at once, 40 let
# three quarters, 64 half. The kernels of one block may have more.
REGISTERS = {"wide_kernel": 40, "any_kernel": 64, "augment_kernel": 64, "cross_entropy_kernel": 40,
             "begin_kernel": 32, "histogram_kernel": 32, "advance_kernel": 64, "tally_kernel": 40,
             "scan_kernel": 128, "write_kernel": 64, "select_kernel": 64}
TYPES = [("float", "float"), ("Half", "Half"), ("BFloat16", "BFloat16")]
WIDE = [(operator, layout, *types) for operator in ("rs_start", "fgsm_step")
        for layout in machine.LAYOUTS for types in TYPES]
WIDE += [(operator, "contiguous", "unsigned char", "float")  # no uint8 is channels last
         for operator in ("rs_start", "fgsm_step")]


@pytest.fixture(scope="session")
def kernels():
    try:
        machine.tools()
    except UserError as missing:
        pytest.skip(str(missing))
    return machine.compiled()


def template(kernel):
    return kernel.name.split("<")[0]


def spills(kernel):
    """What of a thread's variables lies in memory instead of registers."""
    return {"stack": kernel.stack, "local": kernel.local,
            "accesses": kernel.counts()["local"]}


def slow(kernel):
    """What must not be in a kernel that only moves elements."""
    return {kind for kind in ("float64", "special", "call", "local") if kernel.counts()[kind]}


def test_no_kernel_spills(kernels):
    assert [(k.name, spills(k)) for k in kernels if any(spills(k).values())] == []


def test_registers(kernels):
    assert {template(k) for k in kernels} <= REGISTERS.keys()
    assert [(k.name, k.registers) for k in kernels if k.registers > REGISTERS[template(k)]] == []


@pytest.mark.parametrize("which", WIDE, ids=", ".join)
def test_the_wide_path(kernels, which):
    (kernel,) = [k for k in kernels if machine.wide(k) == which]
    operator, _, x, out = which
    assert slow(kernel) == set()
    four = {name: 32 * size for name, size in machine.SIZES.items()}  # the bits of four elements
    assert set(kernel.accesses("STG")) == {four[out]}
    steps = machine.way(kernel)
    loads = [n for n, i in enumerate(steps) if i.op.startswith("LDG")
             and (i.bits > 32 or x == "unsigned char")]
    if x == "unsigned char":  # as wide as an id, or a radius
        assert {i.bits for i in steps if i.op.startswith("LDG")} == {32, four[out]} - (
            {four[out]} if operator == "rs_start" else set())
    else:
        assert [steps[n].bits for n in loads] == [four[x]] * (1 + (operator == "fgsm_step"))
        noise = [n for n, i in enumerate(steps) if i.kind == "wide" and n > max(loads)]
        assert len(noise) >= 15  # of 20: the loads are under way meanwhile
    assert machine.occupancy(kernel) >= 0.75


def test_the_wide_path_is_there_for_all_types(kernels):
    assert sorted(machine.wide(k) for k in kernels if template(k) == "wide_kernel") == sorted(WIDE)


@pytest.mark.parametrize("operator", ["rs_start", "fgsm_step"])
@pytest.mark.parametrize("layout", machine.LAYOUTS)
def test_float32_can_be_as_fast_as_a_copy(kernels, operator, layout):
    (kernel,) = [k for k in kernels if machine.wide(k) == (operator, layout, "float", "float")]
    model = machine.model(kernel)
    assert model["elements"] == 4
    assert model["cards"]["H100 SXM"]["share"] >= 0.9


# --- the reader and the model, by hand

NAME = "_ZN8advprune12_GLOBAL__N_111wide_kernelILNS0_4PathE0ENS0_5StartEffEEvv"
TEXT = f"""
Resource usage:
 Function {NAME}:
  REG:33 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0
		Function : {NAME}
        /*0000*/                   LDC R1, c[0x0][0x28] ;     /* 0x00000a00ff017b82 */
        /*0010*/               @P0 EXIT ;
        /*0020*/                   LDG.E.128 R8, desc[UR24][R10.64] ;
        /*0030*/                   IMAD.WIDE.U32 R2, R5, UR8, R2 ;
        /*0040*/              @!P0 BRA 0x80 ;
        /*0050*/                   FADD R27, R6, -1 ;
        /*0060*/                   DADD R28, R6, -1 ;
        /*0070*/                   BRA 0x90 ;
        /*0080*/                   FADD R27, R6, 1 ;
        /*0090*/                   IMAD.SHL.U32 R14, R2, 0x4, RZ ;
        /*00a0*/                   UIADD3 UR5, UR6, -0x61c88647, URZ ;
        /*00b0*/                   STG.E.128 desc[UR24][R24.64], R8 ;
        /*00c0*/               @P1 BRA 0x20 ;
        /*00d0*/                   EXIT ;
        /*00e0*/                   LDL R3, [R1] ;
        /*00f0*/                   STG.E desc[UR24][R24.64], R3 ;
        /*0100*/                   CALL.REL.NOINC 0x120 ;
        /*0110*/                   BRA 0xd0 ;
        /*0120*/                   MUFU.RCP R0, R35 ;
        /*0130*/                   RET.REL.NODEC R10 0x0 ;
        /*0140*/                   BRA 0x140;
        /*0150*/                   NOP;
"""


@pytest.fixture
def by_hand():
    if shutil.which("c++filt") is None:
        pytest.skip("there is no c++filt; it comes with the binutils")
    (kernel,) = machine.kernels(TEXT)
    return kernel


def test_the_reader_by_hand(by_hand):
    assert by_hand.name == "wide_kernel<0, Start, float, float>"
    assert machine.wide(by_hand) == ("rs_start", "contiguous", "float", "float")
    assert by_hand.registers == 33
    assert spills(by_hand) == {"stack": 16, "local": 8, "accesses": 1}
    assert slow(by_hand) == {"float64", "special", "call", "local"}
    assert by_hand.counts() == {
        "other": 1, "branch": 7, "global": 3, "wide": 1, "multiply": 1, "float32": 2,
        "float64": 1, "uniform": 1, "local": 1, "call": 1, "special": 1}
    assert by_hand.accesses("STG") == {128: 1, 32: 1}
    assert by_hand.accesses("LDG") == {128: 1}


def test_the_way_is_the_longer_side_of_a_branch_and_a_loop_once(by_hand):
    assert [i.at for i in machine.way(by_hand)] == [
        0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xa0, 0xb0, 0xc0, 0xd0]


def test_the_loop_that_moves(by_hand):
    loop = list(range(0x20, 0xd0, 0x10))
    assert [i.at for i in machine.loop(by_hand.code)] == loop
    around = machine.Instruction(0xd0, "@P2", "BRA", "0x0")  # a loop around it does not matter
    inside = machine.Instruction(0xa0, "@P2", "BRA", "0x90")  # nor does one that moves nothing
    code = [{0xd0: around, 0xa0: inside}.get(i.at, i) for i in by_hand.code]
    assert [i.at for i in machine.loop(code)] == loop


def test_the_model_by_hand(by_hand):
    assert machine.occupancy(by_hand) == 0.75  # 40 registers: 12 warps in each fourth of an SM
    assert machine.clocks(machine.way(by_hand)) == {
        "issue": 13 / 128, "integer": 0, "multiply": 3 / 64, "float32": 1 / 128,
        "float64": 1 / 64, "special": 0, "uniform": 1 / 64, "load/store": 8 / 32}
    model = machine.model(by_hand)
    assert (model["elements"], model["bytes_each"], model["instructions_each"]) == (4, 8, 13 / 4)
    assert model["slowest_unit"] == "load/store"
    assert model["in_flight"] == 48 * 32 * 16
    memory = 8 / 3.35e12 * 132 * 1.98e9  # clocks of an SM for an element
    assert model["cards"]["H100 SXM"] == {"busy": pytest.approx(8 / 32 / 4 / memory), "share": 1}


def test_the_selection_by_hand(monkeypatch):
    monkeypatch.setattr(machine, "SELECTION", {"a_kernel": (2, 5), "b_kernel": (1, 0)})
    many = {"n": 100, "drop": 40, "launches": 3, "reads": 5, "bytes": 5 * 400 + 8 * 60,
            "least_bytes": 3 * 400 + 8 * 60}
    assert machine.selection(["a_kernel", "b_kernel"], 100, 40) == many
    one = many | {"launches": 1, "reads": 1, "bytes": 400 + 8 * 60}
    assert machine.selection(["a_kernel", "b_kernel", "select_kernel"], 100, 40) == one
    assert machine.selection(["select_kernel"], machine.FIT + 1, 0)["launches"] == 3


def test_the_selection_is_counted(kernels):
    others = {"wide_kernel", "any_kernel", "augment_kernel", "cross_entropy_kernel"}
    found = {template(k) for k in kernels} - others
    assert found - {machine.ALONE[0]} == machine.SELECTION.keys()


# --- the record

def test_the_record_is_of_these_kernels(kernels):
    record = json.loads((ROOT / "results/machine.json").read_text())
    assert record["what"] == "computed, not measured"
    assert sorted(row["kernel"] for row in record["rows"]) == [k.name for k in kernels], (
        "the kernels are others: delete results/machine.json and make it again")


def test_the_command(kernels, tmp_path, capsys):
    record = benchmark.main(["machine", "--json", "m.json"])
    assert json.loads((tmp_path / "m.json").read_text()) == record
    assert "Computed from the machine code for sm_90" in capsys.readouterr().out
    assert record["what"] == "computed, not measured"
