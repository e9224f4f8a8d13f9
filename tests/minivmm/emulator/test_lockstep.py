"""Lock-step: two engines that agree are told to, and a mistake in one of them is found at its instruction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from guest_os import image
from minivmm.emulator import semantics
from minivmm.emulator.decoder import Decoded
from minivmm.emulator.lockstep.machine import LockstepMachine
from minivmm.emulator.lockstep.process import LockstepProcess
from minivmm.emulator.lockstep.search import Mismatch
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator import code
from minivmm.emulator.translator.emit import ENDS
from minivmm.emulator.translator.emitter import Emitter
from minivmm.outcome import Outcome
from minivmm.virtio.block import Disk
from tests.minivmm.emulator import sequences
from tests.minivmm.emulator.guests import POWER_OFF, write_raw
from tests.minivmm.emulator.programs import compile_program

EMIT = code._EMIT
BODY = f"""
auipc a0,0x10
addi a2,zero,2000
slli a5,a0,8
add a1,a1,a2
xor a3,a1,a2
sub a4,a5,a2
sd a4,0(a0)
ld a6,0(a0)
addi a2,a2,-1
bne a2,zero,{RAM_BASE + 12:#x}
"""
"""A loop of seven instructions, from add on, 2000 times."""


INTERRUPTS_ITSELF = f"""
auipc t0,0
addi t1,t0,0x58
csrrw zero,stvec,t1
addi t1,zero,2
csrrw zero,mideleg,t1
addi t1,t0,0x30
csrrw zero,mepc,t1
lui t1,0x1
addi t1,t1,-2048
csrrw zero,mstatus,t1
csrrsi zero,mie,2
mret
addi a0,zero,20
csrrsi zero,sip,2
csrrsi zero,sstatus,2
csrrci zero,sstatus,2
addi a0,a0,-1
bne a0,zero,{RAM_BASE + 0x34:#x}
{POWER_OFF.strip()}
addi a1,a1,1
csrrci zero,sip,2
sret
"""
"""In S-mode, 20 times: a software interrupt, let in by the instruction behind the one that raises it."""


def as_another(name: str, only: Callable[[Emitter], bool] = lambda _: True) -> Callable[[Emitter, Decoded], None]:
    """Translates an instruction as if it were `name`, where `only` holds."""
    right, wrong = dict(EMIT), EMIT[name]

    def emit(emitter: Emitter, decoded: Decoded) -> None:
        if only(emitter):
            wrong(emitter, decoded._replace(name=name, raw=-decoded.raw))  # code may be kept by its bits
        else:
            right[decoded.name](emitter, decoded)

    return emit


def found(path: Path, stride: int = 10_000, memory: int = 4 << 20) -> Mismatch:
    with LockstepMachine(path, memory=memory, stride=stride) as machine:
        result = machine.run(timeout=120)
        assert result.outcome is Outcome.DIVERGED, result
        assert machine.mismatch is not None
        return machine.mismatch


# --- engines that agree ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("guest", "stride"),
    [("hello", 500), ("user", 10_000), *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("hello", "user"))],
)
def test_our_guests_run_alike_to_their_end(guest: str, stride: int) -> None:
    with LockstepMachine(image(guest, "riscv64"), memory=32 << 20, stride=stride) as machine:
        result = machine.run(timeout=120)
    assert result.outcome is Outcome.SHUTDOWN, result.detail
    assert result.exits["instructions"] > 10_000
    assert result.exits["compared"] >= result.exits["instructions"] // (64 * stride)


def test_devices_do_the_same_for_both_and_the_disk_is_not_written(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    with LockstepMachine(
        image("drivers", "riscv64"), memory=32 << 20, disks=[Disk(disk)], virtio_console=True, rng=True
    ) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.SHUTDOWN, result
    assert b'"read":true}' in result.console
    assert disk.read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("stride", [1, 7, 10_000])
def test_an_interrupt_that_a_guest_sends_itself_comes_at_the_same_instruction(tmp_path: Path, stride: int) -> None:
    with LockstepMachine(write_raw(tmp_path, INTERRUPTS_ITSELF), memory=4 << 20, stride=stride) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.SHUTDOWN, (result.detail, result.dump)
    assert result.exits["traps"] == 20


def test_what_is_typed_reaches_both() -> None:
    with LockstepMachine(image("echo", "riscv64"), memory=32 << 20) as machine:
        machine.start(60)
        machine.send(b"a line\nquit\n")
        result = machine.wait()
    assert result.outcome is Outcome.SHUTDOWN, result
    assert b"a line\n" in result.console


@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 20))])
def test_random_instructions_and_their_traps_leave_the_same_after_every_block(tmp_path: Path, seed: int) -> None:
    guest = tmp_path / "sequences.bin"
    guest.write_bytes(sequences.guest(seed, 6 if seed == 11 else 40))
    with LockstepMachine(guest, memory=16 << 20, stride=1) as machine:
        result = machine.run(timeout=120)
    assert result.outcome is Outcome.SHUTDOWN, (result.detail, result.dump)
    assert result.exits["traps"] > 1


def test_a_guest_without_end_is_ended_at_the_deadline(tmp_path: Path) -> None:
    with LockstepMachine(write_raw(tmp_path, f"jal zero,{RAM_BASE}"), memory=4 << 20) as machine:
        assert machine.run(timeout=0.2).outcome is Outcome.DEADLINE


# --- mistakes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "other", "text", "difference"),
    [
        ("xor", "or", "xor a3,a1,a2", "a3"),
        ("add", "sub", "add a1,a1,a2", "a1"),
        ("ld", "lw", "ld a6,0(a0)", "a6"),
        ("sd", "sw", "sd a4,0(a0)", f"[{RAM_BASE + 0x10000:#x}]"),
    ],
)
def test_a_mistake_of_the_translator_is_found_at_its_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, other: str, text: str, difference: str
) -> None:
    monkeypatch.setitem(EMIT, name, as_another(other))
    mismatch = found(write_raw(tmp_path, BODY + POWER_OFF))
    assert mismatch.where.startswith(f"{text} at {mismatch.pc:#x}")
    assert mismatch.differences[0].name == difference
    assert mismatch.retired == (mismatch.pc - RAM_BASE) // 4  # in the first turn of the loop
    assert [line for line in mismatch.block if line.startswith(">")] == [f"> {mismatch.pc:#x}  {text}"]


def test_a_wrong_store_is_found_where_it_is_made_not_where_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMIT, "sh", as_another("sb"))
    loop = RAM_BASE + 12
    source = f"auipc a0,0x10\naddi a2,zero,2000\nsh a2,8(a0)\naddi a2,a2,-1\nbne a2,zero,{loop:#x}\nlh a3,8(a0)\n"
    mismatch = found(write_raw(tmp_path, source + POWER_OFF), stride=100)
    assert (mismatch.pc, mismatch.retired) == (RAM_BASE + 8, 2)


def test_floating_point_registers_and_flags_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = "lui t0,0x6\ncsrrs zero,mstatus,t0\naddi a0,zero,3\nfcvt.d.l fa0,a0,dyn\n"
    path = write_raw(tmp_path, f"{on}fdiv.d fa1,fa0,fa0,dyn\nfadd.d fa2,fa1,fa0,dyn\n{POWER_OFF}")
    monkeypatch.setitem(EMIT, "fadd.d", as_another("fsub.d"))
    mismatch = found(path)
    assert mismatch.where.startswith("fadd.d fa2,fa1,fa0")
    assert [difference.name for difference in mismatch.differences] == ["fa2"]
    with LockstepMachine(path, memory=4 << 20) as machine:
        monkeypatch.undo()
        assert machine.run(timeout=60).outcome is Outcome.SHUTDOWN


def test_a_branch_that_goes_the_wrong_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ENDS["bne"]
    monkeypatch.setitem(ENDS, "bne", lambda emitter, row, chained: right(emitter, row._replace(name="beq"), chained))
    mismatch = found(write_raw(tmp_path, BODY + POWER_OFF))
    assert mismatch.where.startswith("bne a2,zero")
    assert mismatch.differences[0].name == "pc"


def test_what_goes_wrong_only_within_a_block_is_found_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMIT, "xor", as_another("or", lambda emitter: emitter.index > 0))
    mismatch = found(write_raw(tmp_path, BODY + POWER_OFF))
    assert mismatch.where == f"xor a3,a1,a2 at {RAM_BASE + 16:#x}, together with those before it in its block"
    assert mismatch.retired == 4


def test_a_mistake_of_the_interpreter_is_found_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_raw(tmp_path, BODY + POWER_OFF)
    semantics.factory.cache_clear()
    monkeypatch.setitem(semantics.STATEMENTS, "xor", semantics.STATEMENTS["or"])
    try:
        mismatch = found(path)
    finally:
        semantics.factory.cache_clear()
    assert mismatch.where.startswith("xor a3,a1,a2")
    assert "under interpret" in mismatch.detail


def test_a_mistake_is_looked_for_with_the_disk_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    monkeypatch.setitem(EMIT, "xor", as_another("or"))
    with LockstepMachine(write_raw(tmp_path, BODY + POWER_OFF), memory=4 << 20, disks=[Disk(disk)]) as machine:
        assert machine.run(timeout=60).outcome is Outcome.DIVERGED
        assert machine.mismatch is not None
        assert machine.mismatch.where.startswith("xor a3,a1,a2")
    assert disk.read_bytes() == bytes(1 << 20)


def test_a_mistake_in_a_kernel_with_page_tables_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMIT, "sd", as_another("sw"))
    mismatch = found(image("user", "riscv64"), memory=32 << 20)
    assert "sd" in mismatch.where
    assert mismatch.differences[0].name.startswith("[0x8")


# --- Linux programs --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Appends a byte to /log, reads /word into a mapping of its own, and says a checksum of it."""
    body = """
        long start(long *stack)
        {
            char text[16];
            CALL(WRITE, CALL(OPENAT, HERE, "/log", 02001, 0), "x", 1, 0);
            char *page = (char *)call(MMAP, 0, 8192, 3, 0x22, -1, 0);
            long count = CALL(READ, CALL(OPENAT, HERE, "/word", 0, 0), page + 4090, 64, 0);
            unsigned long sum = 5381;
            for (int turn = 0; turn < 20000; turn++) sum = (sum * 33) ^ (unsigned char)page[4090 + turn % count];
            for (int i = 0; i < 16; i++) text[i] = "0123456789abcdef"[sum >> 4 * i & 15];
            CALL(WRITE, 1, text, 16, 0);
            return 7;
        }"""
    return compile_program(tmp_path_factory.mktemp("program"), body)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "log").write_bytes(b"")
    (tmp_path / "word").write_bytes(b"twelve bytes")
    return tmp_path


def test_a_program_does_once_what_it_asks_of_the_host(
    program: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with LockstepProcess(program, root=root) as process:
        result = process.run(60)
        figures = process.figures
    assert (result.outcome, result.code) == (Outcome.EXITED, 7), result
    assert (root / "log").read_bytes() == b"x"
    assert len(capfd.readouterr().out) == 16
    assert figures["compared"] > 1


def test_looking_for_a_difference_asks_nothing_of_the_host(
    program: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMIT, "xor", as_another("or"))
    with LockstepProcess(program, root=root) as process:
        result = process.run(60)
    assert result.outcome is Outcome.DIVERGED
    assert "xor" in result.detail
    assert "> 0x" in result.dump
    assert (root / "log").read_bytes() == b"x"
