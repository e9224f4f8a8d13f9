"""A hart as the privileged specification has it: traps, delegation, registers of control, counters, atomics, code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from minivmm.emulator.csr_table import MISA, Status
from minivmm.emulator.hart import Hart
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.traps import INTERRUPT, Cause, Privilege
from minivmm.outcome import EndOfRun, Outcome
from tests.minivmm.emulator.bench import DATA, HANDLER, S_HANDLER, Bench

M, S, U = Privilege.M, Privilege.S, Privilege.U
SSI, MTI, SEI = 1 << 1, 1 << 7, 1 << 9


@pytest.fixture(params=[Hart, TranslatingHart], ids=["interpret", "translate"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(request.param)
    yield made
    made.close()


# --- traps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "mode", "cause", "tval"),
    [
        pytest.param("ecall", U, Cause.ECALL_FROM_U, 0, id="ecall from U"),
        pytest.param("ecall", S, Cause.ECALL_FROM_S, 0, id="ecall from S"),
        pytest.param("ecall", M, Cause.ECALL_FROM_M, 0, id="ecall from M"),
        pytest.param("ebreak", U, Cause.BREAKPOINT, 0, id="ebreak"),
        pytest.param(".word 0", M, Cause.ILLEGAL_INSTRUCTION, 0, id="zeros"),
        pytest.param(".word 0xffffffff", M, Cause.ILLEGAL_INSTRUCTION, 0xFFFF_FFFF, id="ones"),
        pytest.param("mret", S, Cause.ILLEGAL_INSTRUCTION, 0x3020_0073, id="mret in S"),
        pytest.param("sret", U, Cause.ILLEGAL_INSTRUCTION, 0x1020_0073, id="sret in U"),
        pytest.param("wfi", U, Cause.ILLEGAL_INSTRUCTION, 0x1050_0073, id="wfi in U"),
        pytest.param("sfence.vma zero,zero", U, Cause.ILLEGAL_INSTRUCTION, 0x1200_0073, id="sfence.vma in U"),
        pytest.param("csrrs a0,mstatus,zero", S, Cause.ILLEGAL_INSTRUCTION, 0x3000_2573, id="M's CSR in S"),
        pytest.param("csrrs a0,0x7c0,zero", M, Cause.ILLEGAL_INSTRUCTION, 0x7C00_2573, id="no such CSR"),
        pytest.param("csrrw a0,mhartid,zero", M, Cause.ILLEGAL_INSTRUCTION, 0xF140_1573, id="write to read-only"),
        pytest.param("csrrs a0,cycle,zero", U, Cause.ILLEGAL_INSTRUCTION, 0xC000_2573, id="counter not enabled"),
        pytest.param("ld a0,0(zero)", M, Cause.LOAD_ACCESS_FAULT, 0, id="load of nothing"),
        pytest.param("sd a0,-8(zero)", M, Cause.STORE_ACCESS_FAULT, (1 << 64) - 8, id="store to nothing"),
        pytest.param("amoadd.w a0,a0,(s0)", M, Cause.STORE_ADDRESS_MISALIGNED, DATA + 2, id="misaligned AMO"),
        pytest.param("lr.d a0,(s0)", M, Cause.LOAD_ADDRESS_MISALIGNED, DATA + 2, id="misaligned LR"),
        pytest.param("sc.d a0,a0,(s0)", M, Cause.STORE_ADDRESS_MISALIGNED, DATA + 2, id="misaligned SC"),
        pytest.param("lr.w a0,(zero)", M, Cause.LOAD_ACCESS_FAULT, 0, id="LR of nothing"),
    ],
)
def test_an_exception_says_what_where_and_in_which_mode(
    bench: Bench, line: str, mode: Privilege, cause: Cause, tval: int
) -> None:
    bench["s0"], bench["a0"] = DATA + 2, 77
    bench.run(line, mode=mode)
    assert bench.trap == (cause, RAM_BASE, tval)
    assert (bench.hart.pc, bench.hart.mode) == (HANDLER, M)
    assert bench.csrs.mstatus & Status.MPP == mode << 11
    assert bench["a0"] == 77


def test_a_delegated_exception_goes_to_s_mode_unless_it_comes_from_m(bench: Bench) -> None:
    bench.csrs.medeleg = 1 << Cause.ILLEGAL_INSTRUCTION
    bench.csrs.mstatus |= Status.SIE
    bench.run(".word 0", mode=U)
    assert (bench.csrs.scause, bench.csrs.sepc, bench.hart.pc, bench.hart.mode) == (2, RAM_BASE, S_HANDLER, S)
    assert bench.csrs.mstatus & (Status.SIE | Status.SPIE | Status.SPP) == Status.SPIE
    bench.run("ecall", mode=S)
    assert (bench.csrs.mcause, bench.hart.mode) == (Cause.ECALL_FROM_S, M)
    bench.run(".word 0", mode=M)
    assert (bench.csrs.mcause, bench.hart.pc) == (2, HANDLER)


def test_returning_restores_mode_and_interrupt_enable(bench: Bench) -> None:
    bench.csrs.mstatus |= Status.MPIE | S << 11 | Status.MPRV
    bench.csrs.mepc = RAM_BASE + 0x100
    bench.run("mret")
    assert (bench.hart.pc, bench.hart.mode) == (RAM_BASE + 0x100, S)
    assert bench.csrs.mstatus & (Status.MIE | Status.MPIE | Status.MPP | Status.MPRV) == Status.MIE | Status.MPIE
    bench.csrs.sepc = RAM_BASE + 0x200
    bench.run("sret", mode=S)
    assert (bench.hart.pc, bench.hart.mode) == (RAM_BASE + 0x200, U)


@pytest.mark.parametrize(
    ("bit", "line"),
    [
        (Status.TVM, "csrrs a0,satp,zero"),
        (Status.TVM, "sfence.vma zero,zero"),
        (Status.TW, "wfi"),
        (Status.TSR, "sret"),
    ],
)
def test_m_mode_can_trap_what_s_mode_does(bench: Bench, bit: Status, line: str) -> None:
    bench.csrs.mstatus |= bit
    bench.run(line, mode=S)
    assert bench.csrs.mcause == Cause.ILLEGAL_INSTRUCTION


def test_an_exception_at_the_trap_handlers_first_instruction_ends_the_machine(bench: Bench) -> None:
    bench.csrs.mtvec = 0
    with pytest.raises(EndOfRun) as end:
        bench.run("ecall\naddi zero,zero,0")
    assert end.value.outcome is Outcome.TRIPLE_FAULT
    assert "mtvec 0x0" in end.value.detail


# --- interrupts ------------------------------------------------------------------------------------------------------
def test_an_interrupt_is_taken_when_enabled_and_vectored_where_asked(bench: Bench) -> None:
    bench.lines, bench.csrs.mie, bench.csrs.mtvec = MTI, MTI, HANDLER | 1
    assert bench.hart.pending_interrupt() is None  # M-mode without MIE
    bench.run("csrrsi zero,mstatus,8")
    assert bench.hart.look_at_interrupts()
    assert bench.trap == (INTERRUPT | 7, RAM_BASE + 4, 0)
    assert bench.hart.pc == HANDLER + 4 * 7


def test_a_delegated_interrupt_interrupts_u_but_not_m_and_higher_ones_come_first(bench: Bench) -> None:
    bench.csrs.mideleg = bench.csrs.mie = SSI | SEI
    bench.csrs.mip, bench.lines = SSI, SEI
    assert bench.hart.pending_interrupt() is None
    bench.hart.enter(U)
    assert bench.hart.pending_interrupt() == 9
    bench.lines = 0
    assert bench.hart.look_at_interrupts()
    assert (bench.csrs.scause, bench.hart.mode, bench.hart.pc) == (INTERRUPT | 1, S, S_HANDLER)


def test_wfi_waits_for_an_enabled_interrupt_even_when_interrupts_are_off(bench: Bench) -> None:
    bench.csrs.mie = MTI
    bench.run("wfi")
    assert not bench.hart.look_at_interrupts()
    bench.lines = MTI
    assert bench.hart.look_at_interrupts()
    assert bench.hart.pc == RAM_BASE + 4


# --- CSRs ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("register", "written", "read"),
    [
        ("misa", 0, MISA),
        ("medeleg", (1 << 64) - 1, 0xB3FF),
        ("mideleg", (1 << 64) - 1, 0x222),
        ("mie", (1 << 64) - 1, 0xAAA),
        ("mepc", 0x1234_5677, 0x1234_5676),
        ("mtvec", 0x8000_0003, HANDLER),
        ("satp", 9 << 60, 0),
        ("mcounteren", (1 << 64) - 1, 7),
        ("pmpcfg0", (1 << 64) - 1, 0),
        ("pmpaddr3", (1 << 64) - 1, 0),
        ("sstatus", (1 << 64) - 1, 1 << 63 | 2 << 32 | 0xC6122),
        ("mstatus", 2 << 11, 0xA << 32),
        ("sip", (1 << 64) - 1, 0),
    ],
)
def test_only_legal_values_stick(bench: Bench, register: str, written: int, read: int) -> None:
    bench["a0"] = written
    bench.run(f"csrrw a1,{register},a0\ncsrrs a2,{register},zero")
    assert bench["a2"] == read


def test_csr_instructions_set_clear_and_leave_alone(bench: Bench) -> None:
    bench["a0"] = 0b1100
    bench.run("csrrwi zero,mscratch,10\ncsrrs a1,mscratch,a0\ncsrrc a2,mscratch,a0")
    bench.run("csrrsi a3,mscratch,0\ncsrrci a4,mscratch,2")
    assert [bench[name] for name in ("a1", "a2", "a3", "a4")] == [0b1010, 0b1110, 0b0010, 0b0010]
    assert bench.csrs.read(0x340) == 0
    bench.run("csrrs a0,mhartid,zero")  # reading a read-only register is no write
    assert bench["a0"] == 0


def test_counters_count_instructions_and_can_be_set(bench: Bench) -> None:
    bench.run("csrrs a0,minstret,zero\naddi zero,zero,0\ncsrrs a1,minstret,zero")
    assert bench["a1"] - bench["a0"] == 2
    bench["a2"] = 1000
    bench.run("csrrw zero,mcycle,a2\ncsrrs a3,cycle,zero\ncsrrs a4,time,zero")
    assert (bench["a3"], bench["a4"]) == (1000, 1234)
    bench.csrs.mcounteren = 7
    bench.run("csrrs a3,cycle,zero", mode=S)
    assert bench["a3"] > 1000


def test_a_trapping_instruction_is_not_counted(bench: Bench) -> None:
    before = bench.hart.retired
    bench.put("addi a0,a0,1\nld a1,0(zero)\naddi a0,a0,1")
    bench.hart.pc = RAM_BASE
    bench.hart.execute(3)
    assert (bench.hart.retired - before, bench["a0"], bench.csrs.mepc) == (1, 1, RAM_BASE + 4)


# --- memory ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("offset", [0, 1, 3, 7])
def test_misaligned_loads_and_stores_are_done(bench: Bench, offset: int) -> None:
    bench["s0"], bench["a0"] = DATA + offset, 0x8877_6655_4433_2281
    bench.run(
        "sd a0,0(s0)\nld a1,0(s0)\nlw a2,4(s0)\nlwu a3,4(s0)\nlh a4,0(s0)\nlb a5,0(s0)\nlbu a6,0(s0)\nsh a0,2(s0)"
    )
    assert bench["a1"] == 0x8877_6655_4433_2281
    assert (bench["a2"], bench["a3"]) == (0xFFFF_FFFF_8877_6655, 0x8877_6655)
    assert (bench["a4"], bench["a5"], bench["a6"]) == (0x2281, 0xFFFF_FFFF_FFFF_FF81, 0x81)
    assert bench.ram.read(DATA + offset, 8) == bytes.fromhex("8122812255667788")


def test_the_last_byte_of_memory_is_there_and_the_next_one_is_not(bench: Bench) -> None:
    bench["s0"] = RAM_BASE + bench.ram.size
    bench.run("lbu a0,-1(s0)\nlw a1,-4(s0)\nlw a1,-2(s0)")
    assert bench.trap == (Cause.LOAD_ACCESS_FAULT, RAM_BASE + 8, RAM_BASE + bench.ram.size)


def test_a_store_across_the_end_of_memory_stores_nothing(bench: Bench) -> None:
    end = RAM_BASE + bench.ram.size
    bench["s0"], bench["a0"] = end, (1 << 64) - 1
    bench.run("sd a0,-4(s0)")
    assert bench.trap == (Cause.STORE_ACCESS_FAULT, RAM_BASE, end)
    assert bench.ram.read(end - 4, 4) == bytes(4)


# --- atomics ---------------------------------------------------------------------------------------------------------
def test_sc_succeeds_only_with_its_reservation(bench: Bench) -> None:
    bench["s0"], bench["a0"] = DATA, 5
    bench.run("sc.w a1,a0,(s0)")
    assert (bench["a1"], bench.ram.read_u32(DATA)) == (1, 0)
    bench.run("lr.w a2,(s0)\nsc.w a1,a0,(s0)\nsc.w a3,a0,(s0)")
    assert (bench["a1"], bench["a3"], bench.ram.read_u32(DATA)) == (0, 1, 5)
    bench.run("lr.w a2,(s0)\necall")
    bench.run("sc.w a1,a0,(s0)")
    assert bench["a1"] == 1  # a trap came between


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("amoswap", 3),
        ("amoadd", 0x8000_0004),
        ("amoxor", 0x8000_0002),
        ("amoand", 1),
        ("amoor", 0x8000_0003),
        ("amomin", 0x8000_0001),
        ("amomax", 3),
        ("amominu", 3),
        ("amomaxu", 0x8000_0001),
    ],
)
def test_an_amo_gives_the_old_value_and_stores_the_new(bench: Bench, name: str, stored: int) -> None:
    bench.ram.write_u64(DATA, 0x55_8000_0001)
    bench["s0"], bench["a0"] = DATA, 3
    bench.run(f"{name}.w a0,a0,(s0)")
    assert bench["a0"] == 0xFFFF_FFFF_8000_0001
    assert bench.ram.read_u64(DATA) == 0x55 << 32 | stored


# --- code that changes -----------------------------------------------------------------------------------------------
ADDI_2 = "addi a0,a0,2"


def test_a_store_into_the_instructions_ahead_is_seen_at_once(bench: Bench) -> None:
    bench.put("sw a1,12(s0)\naddi a2,a2,1\naddi a2,a2,1\naddi a0,a0,1\naddi a3,a3,1")
    bench["s0"], bench["a1"] = RAM_BASE, 0x0025_0513  # addi a0,a0,2
    for _ in range(2):  # the second time from what was decoded the first time
        bench.hart.pc = RAM_BASE
        while bench.hart.pc != RAM_BASE + 20:
            bench.hart.execute(1)
            if bench.hart.pc > RAM_BASE + 20:
                break
    assert bench["a0"] == 4
    assert bench.hart.code.invalidated >= 1


def test_what_a_device_wrote_is_executed_after_fence_i(bench: Bench) -> None:
    bench.put("addi a0,a0,1\njal zero,0x80000000")
    bench.hart.pc = RAM_BASE
    bench.hart.execute(2)
    bench.ram.write(RAM_BASE, (0x0025_0513).to_bytes(4, "little"))
    bench.run("fence.i", at=RAM_BASE + 0x100)
    bench.hart.pc = RAM_BASE
    bench.hart.execute(2)
    assert bench["a0"] == 3


def test_data_beside_code_does_not_throw_the_code_away(bench: Bench) -> None:
    bench.put("sd a0,128(s0)\naddi a0,a0,1\njal zero,0x80000000")
    bench["s0"] = bench.hart.pc = RAM_BASE
    bench.hart.execute(300)
    assert (bench["a0"], bench.ram.read_u64(RAM_BASE + 128)) == (100, 99)
    assert (bench.hart.code.made, bench.hart.code.invalidated) == (1, 0)


def test_an_instruction_across_two_pages_follows_a_change_of_either(bench: Bench) -> None:
    at = RAM_BASE + 0x3FFE
    for changed, value in ((at, 0x0015_0513), (at, 0x0025_0513), (at + 2, 0x0035_0513)):
        half = value & 0xFFFF if changed == at else value >> 16
        if changed == at and value == 0x0015_0513:
            bench.ram.write(at, value.to_bytes(4, "little") + bytes.fromhex("73000000"))
        else:
            if changed == at:
                bench.ram.write(at + 2, (value >> 16).to_bytes(2, "little"))
            bench["s0"], bench["s1"] = changed, half
            bench.run("sh s1,0(s0)")
            bench.run("fence.i")
        bench.hart.pc = at
        bench.hart.execute(1)
    assert bench["a0"] == 1 + 2 + 3


# --- floating point --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("line", ["fmv.d.x fa0,a0", "fld fa0,0(a0)", "c.fldsp fa0,0(sp)", "csrrs a0,fcsr,zero"])
def test_floating_point_is_illegal_while_it_is_off_and_not_after(bench: Bench, line: str) -> None:
    bench["a0"] = bench["sp"] = DATA
    bench.csrs.write_mstatus(0)
    bench.run(line)
    assert bench.trap[:2] == (Cause.ILLEGAL_INSTRUCTION, RAM_BASE)
    bench.csrs.write_mstatus(0)
    bench.csrs.mcause = 0
    bench.run(f"lui t0,0x6\ncsrrs zero,mstatus,t0\n{line}")
    assert bench.csrs.mcause == 0


def test_floating_point_state_is_off_or_dirty(bench: Bench) -> None:
    bench["a0"] = 1 << 13  # Initial
    bench.run("csrrw zero,sstatus,a0\ncsrrs a1,sstatus,zero\ncsrrw zero,sstatus,zero\ncsrrs a2,sstatus,zero")
    assert bench["a1"] == Status.SD | Status.FS | Status.UXL & 2 << 32
    assert bench["a2"] == 2 << 32


def test_flags_and_rounding_mode_are_parts_of_one_register(bench: Bench) -> None:
    bench.csrs.write_mstatus(int(Status.FS))
    bench.run("csrrwi zero,fflags,21\ncsrrwi zero,frm,3\ncsrrs a0,fcsr,zero")
    assert bench["a0"] == 3 << 5 | 21
    bench["a1"] = (1 << 64) - 1
    bench.run("csrrw zero,fcsr,a1\ncsrrs a2,fflags,zero\ncsrrs a3,frm,zero\ncsrrs a4,fcsr,zero")
    assert (bench["a2"], bench["a3"], bench["a4"]) == (31, 7, 255)


def test_a_rounding_mode_that_there_is_not_is_illegal_for_who_rounds_by_it(bench: Bench) -> None:
    bench.csrs.write_mstatus(int(Status.FS))
    bench.run("csrrwi zero,frm,5\nfsgnj.d fa0,fa1,fa2\nfadd.d fa0,fa1,fa2,rtz")
    assert bench.csrs.mcause == 0
    bench.run("fadd.d fa0,fa1,fa2")
    assert bench.trap == (Cause.ILLEGAL_INSTRUCTION, RAM_BASE, 0x02C5_F553)
    bench.csrs.write_frm(0)
    bench.run(".word 0x02c5d553")  # rm 101
    assert bench.trap == (Cause.ILLEGAL_INSTRUCTION, RAM_BASE, 0x02C5_D553)


@pytest.mark.parametrize("rounding", ["rne", "rtz", "rdn", "rup", "rmm"])
def test_a_rounding_mode_is_the_instructions_own_or_the_dynamic_one(bench: Bench, rounding: str) -> None:
    bench.csrs.write_mstatus(int(Status.FS))
    number = ("rne", "rtz", "rdn", "rup", "rmm").index(rounding)
    bench["a0"] = 5
    bench.run(
        f"csrrwi zero,frm,{number}\nfcvt.d.l fa0,a0\naddi a0,zero,2\nfcvt.d.l fa1,a0\nfdiv.d fa2,fa0,fa1\n"
        f"fcvt.l.d a1,fa2\nfcvt.l.d a2,fa2,{rounding}"
    )
    assert bench["a1"] == bench["a2"] == {"rne": 2, "rtz": 2, "rdn": 2, "rup": 3, "rmm": 3}[rounding]  # of 2.5
