"""Instructions of a PV kernel that only ring 0 may execute, carried out for it, as Xen does it.

A PV kernel runs at ring 3 and knows it, but executes a few privileged instructions all the same and relies on the
hypervisor to do what it asks. They arrive as #GP; CPUID with Xen's prefix (arch-x86/xen.h, XEN_EMULATE_PREFIX) as #UD.
What is not in the table, or not allowed, is the domain's own exception.

    mov cr, clts, lmsw                 kernel only; CR0 but for TS is fixed, CR4 is remembered
    mov dr                             kernel only
    rdmsr, wrmsr                       kernel only; the registers of msr.py
    hlt                                kernel only: SCHEDOP_block
    invlpg, invd, wbinvd               kernel only
    xsetbv                             kernel only, once CR4.OSXSAVE is set
    rdpmc                              never: counters are hidden
    cli, sti                           by IOPL: do nothing, since the event mask is the kernel's to write
    in, out, ins, outs                 by IOPL: the ports of pit.py
    cpuid, rdtsc, rdtscp               any mode
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

from minivmm.deprivileged.events import Trap, Vector
from minivmm.kvm.abi import kvm_regs
from minivmm.x86 import operands
from minivmm.x86.instruction import Immediate, Instruction, Memory, Operand, Register, Special
from minivmm.x86.operands import SegmentBases
from minivmm.x86.registers import Cr0, Cr4, Xcr0
from minivmm.xen import msr
from minivmm.xen.abi import EMULATE_PREFIX
from minivmm.xen.cpuid import Leaf
from minivmm.xen.errors import HypercallError

RFLAGS_RF = 1 << 16
CR4_DE, CR4_TSD = 1 << 3, 1 << 2
CR4_CHANGEABLE = 0x0000_07FF  # VME to OSXMMEXCPT: what a processor without any of the hidden features has
STRING_ELEMENTS = 1024  # of rep ins and rep outs at a time: then the instruction is executed again
USER_RING = 3  # which IOPL user code needs
_LOW = (1 << 32) - 1


class Pages(Protocol):
    """Memory by virtual address. Raises HypercallError where the domain may not go."""

    def read(self, address: int, length: int, /) -> bytes:
        """A copy."""

    def write(self, address: int, data: bytes, /) -> None:
        """All of it or nothing."""


class Ports(Protocol):
    """The I/O ports."""

    def read(self, port: int, size: int) -> int:
        """IN."""

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""


class Cpuid(Protocol):
    """What CPUID answers."""

    xcr0: int

    def leaf(self, function: int, index: int = 0, vcpu: int = 0, xcr0: int = 0) -> Leaf:
        """EAX, EBX, ECX, EDX."""

    def may_enable(self, xcr0: int) -> bool:
        """Whether XSETBV takes this value."""


class PrivilegedVcpu(msr.MsrOwner, Protocol):
    """What the instructions act upon. Setters raise HypercallError for what may not be."""

    in_kernel: bool
    iopl: int
    cr0: int
    cr4: int
    xcr0: int
    fault_address: int
    debug_registers: list[int]

    @property
    def kernel_ring(self) -> int:
        """The ring that its kernel counts as."""

    @property
    def regs(self) -> kvm_regs:
        """The registers, as the guest will have them."""

    @property
    def pages(self) -> Pages:
        """The memory of the mode on the CPU."""

    @property
    def ports(self) -> Ports:
        """The domain's."""

    @property
    def cpuid(self) -> Cpuid:
        """The domain's view of the processor."""

    @property
    def cr3(self) -> int:
        """The kernel's page tables, as a machine address."""

    def load_cr3(self, value: int) -> None:
        """MMUEXT_NEW_BASEPTR."""

    def set_task_switched(self, value: bool) -> None:
        """CR0.TS."""

    def set_debug_register(self, number: int, value: int) -> None:
        """set_debugreg."""

    def block(self) -> None:
        """SCHEDOP_block."""


def emulate(vcpu: PrivilegedVcpu, trap: Trap) -> bool:
    """Carries out the instruction that `trap` is on, a #GP without error code or a #UD; RIP is then past it.

    False: it is nothing of the hypervisor's, the exception is the domain's. So it is when HypercallError is raised,
    with a reason. Nothing has been done then, but for a string's elements before the one that cannot be had.
    """
    regs = vcpu.regs
    if trap.vector == Vector.UD:
        if vcpu.pages.read(regs.rip, len(EMULATE_PREFIX)) != EMULATE_PREFIX:
            return False
        found = operands.fetch(vcpu.pages.read, regs.rip + len(EMULATE_PREFIX), HypercallError)
        if found is None or found.mnemonic != "cpuid":
            return False
    else:
        found = operands.fetch(vcpu.pages.read, regs.rip, HypercallError)
        if found is None:
            return False
    name = _name(found)
    entry = _INSTRUCTIONS.get(name)
    if entry is None:
        return False
    allowed, execute = entry
    if not allowed(vcpu):
        raise HypercallError(errno.EPERM, f"{name} in {'kernel' if vcpu.in_kernel else 'user'} mode")
    if execute(vcpu, found):
        regs.rip = found.next_rip
    regs.rflags &= ~RFLAGS_RF
    return True


def _name(found: Instruction) -> str:
    """The mnemonic; for a mov with a control or debug register "mov cr" or "mov dr"."""
    if found.mnemonic == "mov":
        for operand in found.operands:
            if isinstance(operand, Special):
                return f"mov {operand.name[:2]}"
    return found.mnemonic


def may_use_ports(vcpu: PrivilegedVcpu) -> bool:
    """Whether the vCPU's IOPL lets its mode use ports, and cli and sti (SDM 1, 18.5.1)."""
    return vcpu.iopl >= (vcpu.kernel_ring if vcpu.in_kernel else USER_RING)


def _kernel(vcpu: PrivilegedVcpu) -> bool:
    return vcpu.in_kernel


def _anybody(_vcpu: PrivilegedVcpu) -> bool:
    return True


def _tsc_readable(vcpu: PrivilegedVcpu) -> bool:
    return vcpu.in_kernel or not vcpu.cr4 & CR4_TSD


# Each carries out one instruction and says whether RIP is to move on.


def _nothing(_vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    return True


def _hlt(vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    vcpu.block()
    return True


def _clts(vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    vcpu.set_task_switched(False)
    return True


def _cpuid(vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    regs = vcpu.regs
    leaf = vcpu.cpuid.leaf(regs.rax & _LOW, regs.rcx & _LOW, vcpu.index, vcpu.xcr0)
    regs.rax, regs.rbx, regs.rcx, regs.rdx = leaf
    return True


def _rdtsc(vcpu: PrivilegedVcpu, found: Instruction) -> bool:
    _set_edx_eax(vcpu.regs, vcpu.cpu.tsc())
    if found.mnemonic == "rdtscp":
        vcpu.regs.rcx = 0  # TSC_AUX, which the domain cannot write
    return True


def _rdmsr(vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    _set_edx_eax(vcpu.regs, msr.read(vcpu, vcpu.regs.rcx & _LOW))
    return True


def _wrmsr(vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    regs = vcpu.regs
    msr.write(vcpu, regs.rcx & _LOW, (regs.rdx & _LOW) << 32 | regs.rax & _LOW)
    return True


def _set_edx_eax(regs: kvm_regs, value: int) -> None:
    regs.rax, regs.rdx = value & _LOW, value >> 32 & _LOW


def _mov(vcpu: PrivilegedVcpu, found: Instruction) -> bool:
    match found.operands:
        case (Special(name), Register() as source):
            _write_special(vcpu, name, operands.get(vcpu.regs, source))
        case (Register() as target, Special(name)):
            operands.put(vcpu.regs, target, _read_special(vcpu, name))
    return True


def _read_special(vcpu: PrivilegedVcpu, name: str) -> int:
    match name:
        case "cr0":
            return vcpu.cr0
        case "cr2":
            return vcpu.fault_address
        case "cr3":
            return vcpu.cr3
        case "cr4":
            return vcpu.cr4
        case "dr0" | "dr1" | "dr2" | "dr3" | "dr6" | "dr7":
            return vcpu.debug_registers[int(name[2:])]
        case "dr4" | "dr5" if not vcpu.cr4 & CR4_DE:  # then they are DR6 and DR7 (SDM 3B 18.2.2)
            return vcpu.debug_registers[int(name[2:]) + 2]
    raise HypercallError(errno.EPERM, f"mov from {name}")


def _write_special(vcpu: PrivilegedVcpu, name: str, value: int) -> None:
    match name:
        case "cr0":
            _write_cr0(vcpu, value)
        case "cr2":
            vcpu.fault_address = value
        case "cr3":
            vcpu.load_cr3(value)
        case "cr4":
            _write_cr4(vcpu, value)
        case "dr0" | "dr1" | "dr2" | "dr3" | "dr6" | "dr7":
            vcpu.set_debug_register(int(name[2:]), value)
        case "dr4" | "dr5" if not vcpu.cr4 & CR4_DE:
            vcpu.set_debug_register(int(name[2:]) + 2, value)
        case _:
            raise HypercallError(errno.EPERM, f"mov to {name}")


def _write_cr4(vcpu: PrivilegedVcpu, value: int) -> None:
    xsave = Cr4.OSXSAVE if vcpu.cpuid.xcr0 & Xcr0.SSE else 0
    if value & ~(CR4_CHANGEABLE | xsave):
        raise HypercallError(errno.EPERM, f"mov cr4 <- {value:#x}")
    if value & ~vcpu.cr4 & Cr4.OSXSAVE:
        vcpu.cpu.set_xcr0(vcpu.xcr0)  # on hardware xsetbv is #UD, and does not come here, until CR4 has the bit
    vcpu.cr4 = value


def _xsetbv(vcpu: PrivilegedVcpu, _found: Instruction) -> bool:
    regs = vcpu.regs
    number, value = regs.rcx & _LOW, (regs.rdx & _LOW) << 32 | regs.rax & _LOW
    if number != 0 or not vcpu.cr4 & Cr4.OSXSAVE or not vcpu.cpuid.may_enable(value):
        raise HypercallError(errno.EPERM, f"xsetbv {number} <- {value:#x}")
    vcpu.cpu.set_xcr0(value)
    vcpu.xcr0 = value
    return True


def _write_cr0(vcpu: PrivilegedVcpu, value: int) -> None:
    if (value ^ vcpu.cr0) & ~Cr0.TS:
        raise HypercallError(errno.EPERM, f"cr0 <- {value:#x}, which is {vcpu.cr0:#x}: TS alone may change")
    vcpu.set_task_switched(bool(value & Cr0.TS))


def _lmsw(vcpu: PrivilegedVcpu, found: Instruction) -> bool:
    """Sets PE, MP, EM and TS, and cannot clear PE (SDM 2A LMSW)."""
    word = _word(vcpu, found.operands[0])
    _write_cr0(vcpu, vcpu.cr0 & ~0xE | word & 0xF)
    return True


def _word(vcpu: PrivilegedVcpu, source: Operand) -> int:
    match source:
        case Register():
            return operands.get(vcpu.regs, source)
        case Memory():
            address = operands.address(vcpu.regs, source, SegmentBases(vcpu.fs_base, vcpu.gs_base))
            return int.from_bytes(vcpu.pages.read(address, 2), "little")
    raise HypercallError(errno.EPERM, "an operand that lmsw does not have")


def _in(vcpu: PrivilegedVcpu, found: Instruction) -> bool:
    target, port = found.operands
    assert isinstance(target, Register)
    operands.put(vcpu.regs, target, vcpu.ports.read(_port(vcpu, port), target.size))
    return True


def _out(vcpu: PrivilegedVcpu, found: Instruction) -> bool:
    port, source = found.operands
    assert isinstance(source, Register)
    vcpu.ports.write(_port(vcpu, port), source.size, operands.get(vcpu.regs, source))
    return True


def _port(vcpu: PrivilegedVcpu, operand: Operand) -> int:
    assert isinstance(operand, Register | Immediate)
    return operands.value(vcpu.regs, operand, 2 if isinstance(operand, Register) else 1)


def _strings(vcpu: PrivilegedVcpu, found: Instruction) -> bool:
    """INS and OUTS: elements as RCX says, each complete in itself, RIP on the instruction until all are done."""
    regs = vcpu.regs
    memory = next(operand for operand in found.operands if isinstance(operand, Memory))
    assert memory.base_register
    count = Register("rcx", memory.address_size)
    bases = SegmentBases(vcpu.fs_base, vcpu.gs_base)
    for done in range(STRING_ELEMENTS):
        if found.repeat and operands.get(regs, count) == 0:
            return True
        address, port = operands.address(regs, memory, bases), regs.rdx & 0xFFFF
        try:
            if found.operands[0] is memory:
                _input(vcpu, port, address, memory.size)
            else:
                data = vcpu.pages.read(address, memory.size)
                vcpu.ports.write(port, memory.size, int.from_bytes(data, "little"))
        except HypercallError:
            if not done:
                raise
            return False  # executed again, it fails on its first element
        operands.step(regs, memory.base_register, memory.size, memory.address_size)
        if not found.repeat:
            return True
        operands.put(regs, count, operands.get(regs, count) - 1)
    return False


def _input(vcpu: PrivilegedVcpu, port: int, address: int, size: int) -> None:
    vcpu.pages.write(address, vcpu.pages.read(address, size))  # may it be stored? A port must not be read in vain
    vcpu.pages.write(address, vcpu.ports.read(port, size).to_bytes(size, "little"))


_Allowed = Callable[[PrivilegedVcpu], bool]
_Execute = Callable[[PrivilegedVcpu, Instruction], bool]

_INSTRUCTIONS: dict[str, tuple[_Allowed, _Execute]] = {
    "mov cr": (_kernel, _mov),
    "mov dr": (_kernel, _mov),
    "clts": (_kernel, _clts),
    "lmsw": (_kernel, _lmsw),
    "rdmsr": (_kernel, _rdmsr),
    "wrmsr": (_kernel, _wrmsr),
    "xsetbv": (_kernel, _xsetbv),
    "hlt": (_kernel, _hlt),
    "invlpg": (_kernel, _nothing),  # the hypervisor flushes what it changes
    "invd": (_kernel, _nothing),
    "wbinvd": (_kernel, _nothing),
    "cli": (may_use_ports, _nothing),
    "sti": (may_use_ports, _nothing),
    "in": (may_use_ports, _in),
    "out": (may_use_ports, _out),
    **dict.fromkeys(("insb", "insw", "insd", "outsb", "outsw", "outsd"), (may_use_ports, _strings)),
    "cpuid": (_anybody, _cpuid),
    "rdtsc": (_tsc_readable, _rdtsc),
    "rdtscp": (_tsc_readable, _rdtsc),
}
