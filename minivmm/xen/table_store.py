"""Accesses of a PV kernel that fault by design, carried out for it: stores into its page tables, and loads from where
Xen has the machine-to-physical table.

A page table in use is mapped read-only. Kernels change single entries with ordinary instructions nevertheless, atomic
ones above all, and Xen makes of the faulting store an update of the entry, checked like one by hypercall. The value
stored, the registers and the flags are the processor's (SDM 2): a test executes the same instructions natively.

A string instruction is carried out by one element; while its count lasts RIP stays, and the next element faults anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from minivmm.kvm.abi import kvm_regs
from minivmm.x86 import arithmetic, operands
from minivmm.x86.arithmetic import COMPARISONS, ONE_OPERAND, STATUS, TWO_OPERANDS
from minivmm.x86.instruction import Immediate, Instruction, Memory, Register
from minivmm.x86.operands import SegmentBases
from minivmm.xen.errors import HypercallError

RFLAGS_RF = 1 << 16
WIDEST = 8  # bytes of an operand: wider ones are SSE's, or cmpxchg16b's

Store = Callable[[int, int, int], None]
"""Machine address, value and size in bytes. Raises HypercallError when the store is refused."""

Load = Callable[[int, int], bytes]
"""Virtual address and size. Raises HypercallError where there is nothing."""


class Pages(Protocol):
    """Memory by virtual address. Raises HypercallError where the domain may not go."""

    def read(self, address: int, length: int, /) -> bytes:
        """A copy."""


class StoringVcpu(Protocol):
    """What an instruction's operands are taken from."""

    @property
    def regs(self) -> kvm_regs:
        """The registers, on the faulting instruction."""

    @property
    def pages(self) -> Pages:
        """The memory of the mode on the CPU."""

    @property
    def fs_base(self) -> int:
        """The base of FS."""

    @property
    def gs_base(self) -> int:
        """The base of GS."""


class _Effect(NamedTuple):
    """What an instruction does, worked out and not done yet."""

    stored: int | None = None
    flags: int | None = None  # the status flags afterwards
    registers: tuple[tuple[Register, int], ...] = ()


def emulate_store(vcpu: StoringVcpu, address: int, machine: int, store: Store) -> bool:
    """Carries out the instruction at RIP, whose store at virtual `address`, machine address `machine`, faulted.

    False, or HypercallError from `store` or memory: nothing has been done, the fault is the domain's own.
    """
    regs, bases = vcpu.regs, SegmentBases(vcpu.fs_base, vcpu.gs_base)
    found = operands.fetch(vcpu.pages.read, regs.rip, HypercallError)
    if found is None:
        return False
    target = _memory_target(found)
    if target is None or _accessed(regs, found, target, bases) != address:
        return False
    old = int.from_bytes(vcpu.pages.read(address, target.size), "little")
    effect = _string_store(vcpu, found, bases) if found.string else _effect(regs, found, target, old)
    if effect is None or effect.stored is None:
        return False
    store(machine, effect.stored, target.size)
    _finish(regs, found, effect)
    return True


def emulate_load(vcpu: StoringVcpu, address: int, load: Load) -> bool:
    """Carries out the instruction at RIP, whose load from virtual `address` faulted, with data from `load`.

    False, or HypercallError from `load` or memory: nothing has been done, the fault is the domain's own.
    """
    regs, bases = vcpu.regs, SegmentBases(vcpu.fs_base, vcpu.gs_base)
    found = operands.fetch(vcpu.pages.read, regs.rip, HypercallError)
    if found is None or found.string:
        return False
    source = next((operand for operand in found.operands if isinstance(operand, Memory)), None)
    if source is None or not 0 < source.size <= WIDEST or operands.address(regs, source, bases) != address:
        return False
    effect = _load_effect(regs, found, lambda: int.from_bytes(load(address, source.size), "little"))
    if effect is None:
        return False
    _finish(regs, found, effect)
    return True


def _memory_target(found: Instruction) -> Memory | None:
    """The memory that is stored to: the first operand, except that xchg takes its two in any order."""
    candidates = found.operands if found.mnemonic == "xchg" else found.operands[:1]
    for operand in candidates:
        if isinstance(operand, Memory) and 0 < operand.size <= WIDEST:
            return operand
    return None


def _accessed(regs: kvm_regs, found: Instruction, target: Memory, bases: SegmentBases) -> int:
    """Where the target is. A bit offset in a register reaches beyond the operand (SDM 2A BTS, and 3.1.1.9)."""
    address = operands.address(regs, target, bases)
    if found.mnemonic in _BIT_TESTS and isinstance(found.operands[1], Register):
        offset = operands.signed(operands.get(regs, found.operands[1]), target.size)
        address += offset // (8 * target.size) * target.size
    return address & operands.WORD


_BIT_TESTS = ("bts", "btr", "btc")


def _effect(regs: kvm_regs, found: Instruction, target: Memory, old: int) -> _Effect | None:
    """Of an instruction with `old` in its target. None when it is not one of those that are known."""
    size, name, flags = target.size, found.mnemonic, regs.rflags & STATUS
    if name in ONE_OPERAND:
        return _Effect(*ONE_OPERAND[name](old, size, flags))
    if len(found.operands) != 2:
        return None
    source = found.operands[0] if found.operands[1] is target else found.operands[1]
    if not isinstance(source, Register | Immediate):
        return None
    value = operands.value(regs, source, size)
    if name in TWO_OPERANDS:
        return _Effect(*TWO_OPERANDS[name](old, value, size, flags))
    if name in _BIT_TESTS:
        return _Effect(*arithmetic.bit_test(old, value, size, flags, name))
    if name in ("mov", "movnti"):
        return _Effect(value)
    if not isinstance(source, Register):
        return None
    match name:
        case "xchg":
            return _Effect(value, None, ((source, old),))
        case "xadd":
            total, flags = arithmetic.add(old, value, size)
            return _Effect(total, flags, ((source, old),))
        case "cmpxchg":
            accumulator = Register("rax", size)
            expected = operands.get(regs, accumulator)
            flags = COMPARISONS["cmp"](expected, old, size)
            if expected == old:
                return _Effect(value, flags)
            return _Effect(old, flags, ((accumulator, old),))  # the processor stores in any case (SDM 2A CMPXCHG)
    return None


def _string_store(vcpu: StoringVcpu, found: Instruction, bases: SegmentBases) -> _Effect | None:
    """STOS and MOVS, one element. Its registers are moved on by _finish."""
    target, source = found.operands
    assert isinstance(target, Memory)
    if found.repeat and operands.get(vcpu.regs, Register("rcx", target.address_size)) == 0:
        return None
    if isinstance(source, Register) and found.mnemonic.startswith("stos"):
        return _Effect(operands.get(vcpu.regs, source))
    if isinstance(source, Memory) and found.mnemonic.startswith("movs"):
        data = vcpu.pages.read(operands.address(vcpu.regs, source, bases), source.size)
        return _Effect(int.from_bytes(data, "little"))
    return None


def _load_effect(regs: kvm_regs, found: Instruction, load: Callable[[], int]) -> _Effect | None:
    """Of an instruction with a memory operand that it only reads."""
    name, flags = found.mnemonic, regs.rflags & STATUS
    match found.operands:
        case (Register() as target, Memory(size=size)) if name in ("mov", "movzx"):
            return _Effect(registers=((target, load()),))
        case (Register() as target, Memory(size=size)) if name in ("movsx", "movsxd"):
            return _Effect(registers=((target, operands.signed(load(), size)),))
        case (Register() as target, Memory(size=size)) if name in TWO_OPERANDS:
            result, flags = TWO_OPERANDS[name](operands.get(regs, target), load(), size, flags)
            return _Effect(flags=flags, registers=((target, result),))
        case (Register() as left, Memory(size=size)) if name in COMPARISONS:
            return _Effect(flags=COMPARISONS[name](operands.get(regs, left), load(), size))
        case (Memory(size=size), Register() | Immediate() as right) if name in COMPARISONS:
            return _Effect(flags=COMPARISONS[name](load(), operands.value(regs, right, size), size))
    return None


def _finish(regs: kvm_regs, found: Instruction, effect: _Effect) -> None:
    """Does to the registers what the instruction does, now that its store is done."""
    for register, value in effect.registers:
        operands.put(regs, register, value)
    if effect.flags is not None:
        regs.rflags = regs.rflags & ~STATUS | effect.flags
    regs.rflags &= ~RFLAGS_RF
    if found.string:
        for operand in found.operands:
            if isinstance(operand, Memory) and operand.base_register:
                operands.step(regs, operand.base_register, operand.size, operand.address_size)
                count = Register("rcx", operand.address_size)
        if found.repeat:
            operands.put(regs, count, operands.get(regs, count) - 1)
            if operands.get(regs, count):
                return
    regs.rip = found.next_rip
