"""What ring 3 has between two runs is what the policy gave it, and a second guest finds nothing of the first."""

from __future__ import annotations

import random
import struct

import pytest

from minivmm.deprivileged.events import Interrupted, PortAccess, SystemCall, Trap, Vector
from minivmm.deprivileged.monitor import GDT_SIZE, LDT_SIZE, Selector, software_back_end
from minivmm.kvm import abi
from minivmm.memory import PAGE_SIZE
from minivmm.x86 import descriptors
from tests.minivmm.deprivileged.ring3 import CODE, DATA, LOAD, STACK, STORE, SYSCALL, UD2, USER, Ring3

pytestmark = [pytest.mark.kvm, pytest.mark.svm_smoke]

GENERAL = [name for name, *_ in abi.kvm_regs._fields_ if name not in ("rip", "rflags")]
X87, SSE = b"\xd9\xe8", b"\x0f\x57\xc0"  # fld1; xorps xmm0, xmm0
VZEROUPPER = b"\xc5\xf8\x77"
XGETBV = b"\x31\xc9\x0f\x01\xd0"  # xor ecx, ecx; xgetbv
NO_MORE_RING_3 = pytest.mark.skipif(software_back_end(), reason="ring 3 runs on the processor as it is")


def vector_registers(operation: int, size: int) -> bytes:
    """Loads (0x28, 0x6f) or stores (0x29, 0x7f) XMM or YMM 0 to 15 from or to the memory at RDI, `size` bytes each."""
    code = b""
    for register in range(16):
        at = register * size
        modrm = 0x87 | (register & 7) << 3  # [rdi + disp32]
        if size == 16:
            code += (b"\x44" if register > 7 else b"") + b"\x0f" + bytes((operation, modrm)) + struct.pack("<I", at)
        else:
            code += b"\xc5" + bytes((0x7E if register > 7 else 0xFE, operation, modrm)) + struct.pack("<I", at)
    return code


def has_avx(ring3: Ring3) -> bool:
    """Whether ring 3 may use AVX."""
    return ring3.enter(VZEROUPPER + UD2) == Trap(Vector.UD, 0, 0, CODE + 3)


def run(ring3: Ring3, code: bytes, **registers: int) -> object:
    """As Ring3.enter, and all that is not named stays as it is."""
    ring3.space.put(CODE, code)
    ring3.cpu.root, ring3.cpu.regs.rip = ring3.space.root, CODE
    for name, value in registers.items():
        setattr(ring3.cpu.regs, name, value)
    return ring3.cpu.run()


def test_a_second_guest_finds_no_general_purpose_register_of_the_first(ring3: Ring3) -> None:
    rng = random.Random(3)
    assert run(ring3, UD2, **{name: rng.getrandbits(64) for name in GENERAL}, rflags=0xCD7) == Trap(6, 0, 0, CODE)
    ring3.cpu.reset()
    assert run(ring3, UD2) == Trap(Vector.UD, 0, 0, CODE)
    assert {getattr(ring3.cpu.regs, name) for name in GENERAL} == {0}
    assert ring3.cpu.regs.rflags & ~(1 << 16) == 0x202


@pytest.mark.parametrize("size", [16, 32])
def test_a_second_guest_finds_no_vector_register_of_the_first(ring3: Ring3, size: int) -> None:
    if size == 32 and not (ring3.cpu.set_xcr0(7) and has_avx(ring3)):
        pytest.skip("no AVX at ring 3")
    load, store = (0x28, 0x29) if size == 16 else (0x6F, 0x7F)
    secret = random.Random(4).randbytes(16 * size)
    ring3.space.put(DATA, secret)
    end = CODE + len(vector_registers(load, size))
    assert run(ring3, vector_registers(load, size) + UD2, rdi=DATA) == Trap(Vector.UD, 0, 0, end)
    assert run(ring3, vector_registers(store, size) + UD2, rdi=DATA + 0x400) == Trap(Vector.UD, 0, 0, end)
    assert ring3.memory.read(ring3.space.frame(DATA) + 0x400, len(secret)) == secret
    ring3.cpu.reset()
    if size == 32:
        ring3.cpu.set_xcr0(7)
    assert run(ring3, vector_registers(store, size) + UD2, rdi=DATA + 0x800) == Trap(Vector.UD, 0, 0, end)
    assert not any(ring3.memory.read(ring3.space.frame(DATA) + 0x800, len(secret)))


def test_a_second_guest_finds_the_x87_and_mxcsr_as_at_reset(ring3: Ring3) -> None:
    save = b"\x0f\xae\x87\0\4\0\0"  # fxsave [rdi + 0x400]
    change = b"\x0f\xae\x17" + b"\xd9\x6f\x08" + X87 + X87 + SSE  # ldmxcsr [rdi]; fldcw [rdi + 8]
    ring3.space.put(DATA, struct.pack("<QH", 0x7F80, 0x27F))

    def state(code: bytes) -> tuple[int, int, int, int]:
        """FCW, TOP of FSW, FTW and MXCSR (SDM 1 table 10-2)."""
        end = CODE + len(code + save)
        assert run(ring3, code + save + UD2, rdi=DATA) == Trap(Vector.UD, 0, 0, end)
        image = ring3.memory.read(ring3.space.frame(DATA) + 0x400, 160)
        control, status, tags, mxcsr = struct.unpack("<HHB19xI", image[:28])
        return control, status >> 11 & 7, tags, mxcsr

    at_reset = 0x37F, 0, 0, 0x1F80
    assert state(b"") == at_reset
    assert state(change) == (0x27F, 6, 0xC0, 0x7F80)
    ring3.cpu.reset()
    assert state(b"") == at_reset
    assert not any(ring3.memory.read(ring3.space.frame(DATA) + 0x400 + 32, 128))  # ST0 to ST7


def test_a_second_guest_finds_no_segment_of_the_first(ring3: Ring3) -> None:
    cpu, area = ring3.cpu, ring3.monitor.cpus[0]
    first = {name: getattr(cpu, name) for name in ("ds_selector", "es_selector", "fs_selector", "gs_selector")}
    before = ring3.memory.read(area.gdt, GDT_SIZE + PAGE_SIZE)
    writable = descriptors.gdt_entry(descriptors.data(0, 3))
    cpu.load_gdt(struct.pack("<Q", writable) * (GDT_SIZE // 8))
    cpu.load_ldt(struct.pack("<Q", writable) * (LDT_SIZE // 8))
    cpu.store_descriptor(77, descriptors.gdt_entry(descriptors.code64(0, 3)))
    for name in first:
        setattr(cpu, name, 0x53)
    cpu.fs_base, cpu.gs_base, cpu.cs, cpu.ss = DATA, STACK, 77 << 3 | 3, 0x5F
    assert run(ring3, UD2) == Trap(Vector.UD, 0, 0, CODE)
    cpu.reset()
    assert (cpu.cs, cpu.ss) == (Selector.USER64, Selector.USER_DATA)
    assert run(ring3, UD2) == Trap(Vector.UD, 0, 0, CODE)
    assert {name: getattr(cpu, name) for name in first} == first
    assert (cpu.fs_base, cpu.gs_base) == (0, 0)
    assert ring3.memory.read(area.gdt, GDT_SIZE + PAGE_SIZE) == before
    assert not any(ring3.memory.read(area.ldt, LDT_SIZE))
    cpu.cs = 77 << 3 | 3
    assert cpu.run() == Trap(Vector.GP, 77 << 3, 0, CODE)


def test_nothing_is_pending_after_a_reset(ring3: Ring3) -> None:
    """Neither a read without its answer, nor a string of writes, nor a kick; what was to be stored is stored."""
    cpu, memory = ring3.cpu, ring3.memory
    for code in (b"\xe4\x42", b"\xf3\x6e", b"\xf3\x6c"):  # in al, 0x42; rep outsb; rep insb
        assert isinstance(run(ring3, code, rax=1, rdx=0x42, rcx=10_000, rsi=DATA, rdi=DATA), PortAccess)
        cpu.kick()
        cpu.reset()
        assert run(ring3, SYSCALL) == SystemCall(CODE + 2)
        assert (cpu.regs.rax, cpu.regs.rdx, cpu.regs.rsi, cpu.regs.rdi) == (0, 0, 0, 0)
    assert run(ring3, LOAD + UD2, rdi=DATA) == Trap(Vector.UD, 0, 0, CODE + 3)
    entry = ring3.space.entry(DATA)
    cpu.store_entry(entry, memory.read_u64(entry), 0)
    before = cpu.stores
    cpu.reset()
    assert cpu.stores == before + 1
    assert run(ring3, LOAD + UD2, rdi=DATA) == Trap(Vector.PF, 4, DATA, CODE)
    assert cpu.stores == before + 1
    memory.write_u64(entry, ring3.space.table | USER)


def test_a_vcpu_that_stopped_serves_a_second_guest(ring3: Ring3) -> None:
    slot = ring3.space.root + 8 * ring3.monitor.slot
    entry = ring3.memory.read_u64(slot)
    ring3.memory.write_u64(slot, 0)
    run(ring3, UD2)
    ring3.memory.write_u64(slot, entry)
    ring3.cpu.reset()
    second = ring3.address_space(1)
    second.put(CODE, UD2)
    ring3.cpu.root, ring3.cpu.regs.rip = second.root, CODE
    assert ring3.cpu.run() == Trap(Vector.UD, 0, 0, CODE)


@NO_MORE_RING_3
@pytest.mark.parametrize("code", [X87, SSE], ids=["x87", "sse"])
def test_floating_point_is_a_fault_once_the_task_is_switched(ring3: Ring3, code: bytes) -> None:
    cpu = ring3.cpu
    for _ in range(3):
        cpu.task_switched = True
        assert run(ring3, code + UD2) == Trap(Vector.NM, 0, 0, CODE)
        assert cpu.task_switched
        cpu.task_switched = False
        assert run(ring3, code + UD2) == Trap(Vector.UD, 0, 0, CODE + len(code))
        assert not cpu.task_switched
    cpu.task_switched = True
    cpu.reset()
    assert not cpu.task_switched


@NO_MORE_RING_3
def test_ring_3_has_the_extended_states_it_was_given(ring3: Ring3) -> None:
    cpu = ring3.cpu
    assert run(ring3, XGETBV + UD2) == Trap(Vector.UD, 0, 0, CODE + 2)
    assert run(ring3, VZEROUPPER + UD2) == Trap(Vector.UD, 0, 0, CODE)
    if not cpu.set_xcr0(3):
        pytest.skip("this KVM's CPUID has no XSAVE")
    assert run(ring3, XGETBV + UD2) == Trap(Vector.UD, 0, 0, CODE + 5)
    assert (cpu.regs.rax, cpu.xcr0) == (3, 3)
    assert run(ring3, VZEROUPPER + UD2) == Trap(Vector.UD, 0, 0, CODE)
    if cpu.set_xcr0(7):
        assert run(ring3, VZEROUPPER + UD2) == Trap(Vector.UD, 0, 0, CODE + 3)
    cpu.reset()
    assert run(ring3, XGETBV + UD2) == Trap(Vector.UD, 0, 0, CODE + 2)


def test_extended_states_that_cannot_be_change_nothing(ring3: Ring3) -> None:
    before = ring3.cpu.xcr0
    for value in (0, 2, 5, 1 << 62):
        assert not ring3.cpu.set_xcr0(value)
    assert ring3.cpu.xcr0 == before
    assert run(ring3, SSE + UD2) == Trap(Vector.UD, 0, 0, CODE + 3)


def test_a_breakpoint_is_a_debug_trap_where_the_back_end_has_it(ring3: Ring3) -> None:
    cpu = ring3.cpu
    execute, write_8 = 1, 1 << 2 | 0b1001 << 20  # L0; L1, on stores of 8 bytes
    done = cpu.set_debug_registers((CODE + 1, DATA, 0, 0, 0, execute | write_8))
    assert done is not software_back_end()
    if not done:
        assert run(ring3, b"\x90\x90" + UD2) == Trap(Vector.UD, 0, 0, CODE + 2)
        return
    if (event := run(ring3, b"\x90\x90" + UD2)) == Trap(Vector.UD, 0, 0, CODE + 2):
        pytest.skip("this processor meets no breakpoints in a guest: QEMU's emulated SVM")
    assert event == Trap(Vector.DB, 0, 0, CODE + 1)
    assert cpu.debug_status & 0xF == 1
    cpu.set_debug_registers((CODE + 1, DATA, 0, 0, 0, write_8))
    assert run(ring3, STORE + UD2, rdi=DATA) == Trap(Vector.DB, 0, 0, CODE + 3)
    assert cpu.debug_status & 0xF == 2
    cpu.reset()
    assert run(ring3, STORE + UD2, rdi=DATA) == Trap(Vector.UD, 0, 0, CODE + 3)


def test_the_tsc_is_ring_3s(ring3: Ring3) -> None:
    before = ring3.cpu.tsc()
    assert run(ring3, b"\x0f\x31" + UD2) == Trap(Vector.UD, 0, 0, CODE + 2)  # rdtsc
    assert before < ring3.cpu.regs.rdx << 32 | ring3.cpu.regs.rax < ring3.cpu.tsc()
    assert ring3.cpu.vcpu.tsc_khz() > 100_000


def test_a_kick_of_the_first_guests_does_not_reach_the_second(ring3: Ring3) -> None:
    ring3.cpu.kick()
    ring3.cpu.reset()
    assert run(ring3, UD2) == Trap(Vector.UD, 0, 0, CODE)
    ring3.cpu.kick()
    assert run(ring3, UD2) == Interrupted()
