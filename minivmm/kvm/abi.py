"""linux/kvm.h and asm/kvm.h for x86-64, under their own names: ioctl numbers, structures, constants.

Nothing here does anything. Sections cited are of the kernel's Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum

KVM_API_VERSION = 12


class kvm_userspace_memory_region(ctypes.Structure):
    """4.35: one slot of guest-physical memory. A slot of size 0 is deleted."""

    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


KVM_MEM_LOG_DIRTY_PAGES = 1 << 0
KVM_MEM_READONLY = 1 << 1


class kvm_regs(ctypes.Structure):
    """4.11: the general-purpose registers, RIP and RFLAGS."""

    _fields_ = [
        (name, c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
            *("rip", "rflags"),
        )
    ]


class kvm_segment(ctypes.Structure):
    """4.13: a segment register with its hidden part. `type` and the bits after it as in a descriptor."""

    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class kvm_dtable(ctypes.Structure):
    """4.13: GDTR or IDTR."""

    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class kvm_sregs(ctypes.Structure):
    """4.13: segments, descriptor tables, control registers."""

    _fields_ = [
        *((name, kvm_segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class kvm_msr_entry(ctypes.Structure):
    """4.18: one model-specific register."""

    _fields_ = [("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64)]


class kvm_msrs(ctypes.Structure):
    """4.19: registers to read or set; here always one."""

    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32), ("entry", kvm_msr_entry)]


class kvm_msrs_header(ctypes.Structure):
    """kvm_msrs as the ioctl number sees it: without its flexible array."""

    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32)]


class kvm_cpuid_entry2(ctypes.Structure):
    """4.46: one CPUID leaf."""

    _fields_ = [
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    ]


KVM_MAX_CPUID_ENTRIES = 256


class kvm_cpuid2(ctypes.Structure):
    """4.46: the CPUID leaves of a vCPU. `nent` says how many of `entries` are meant."""

    _fields_ = [
        ("nent", c_uint32),
        ("padding", c_uint32),
        ("entries", kvm_cpuid_entry2 * KVM_MAX_CPUID_ENTRIES),
    ]


class kvm_cpuid2_header(ctypes.Structure):
    """kvm_cpuid2 as the ioctl number sees it: without its flexible array."""

    _fields_ = [("nent", c_uint32), ("padding", c_uint32)]


class kvm_vcpu_events(ctypes.Structure):
    """4.31: exceptions, interrupts and NMIs on their way into the guest, named as in the kernel's nested structures."""

    _fields_ = [
        *((f"exception_{name}", c_uint8) for name in ("injected", "nr", "has_error_code", "pending")),
        ("exception_error_code", c_uint32),
        *((f"interrupt_{name}", c_uint8) for name in ("injected", "nr", "soft", "shadow")),
        *((f"nmi_{name}", c_uint8) for name in ("injected", "pending", "masked", "pad")),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        *((f"smi_{name}", c_uint8) for name in ("smm", "pending", "smm_inside_nmi", "latched_init")),
        ("triple_fault_pending", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    ]


class kvm_debugregs(ctypes.Structure):
    """4.33: DR0 to DR3, DR6, DR7."""

    _fields_ = [
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    ]


class kvm_xsave(ctypes.Structure):
    """4.42: x87, SSE, AVX and later state, as XSAVE lays it out (SDM 1 13.4)."""

    _fields_ = [("region", c_uint32 * 1024)]


class kvm_xcr(ctypes.Structure):
    """4.44: one extended control register."""

    _fields_ = [("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64)]


class kvm_xcrs(ctypes.Structure):
    """4.44: the extended control registers, of which there is one."""

    _fields_ = [("nr_xcrs", c_uint32), ("flags", c_uint32), ("xcrs", kvm_xcr * 16), ("padding", c_uint64 * 16)]


class kvm_mp_state(ctypes.Structure):
    """4.38: whether a vCPU runs, is halted, or waits for INIT or SIPI."""

    _fields_ = [("mp_state", c_uint32)]


class kvm_irq_level(ctypes.Structure):
    """4.25: the level of one interrupt line (GSI)."""

    _fields_ = [("irq", c_uint32), ("level", c_uint32)]


class kvm_irqfd(ctypes.Structure):
    """4.75: an eventfd whose signal raises an interrupt line."""

    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


class kvm_ioeventfd(ctypes.Structure):
    """4.59: an eventfd signalled by a guest write, without an exit to user space."""

    _fields_ = [
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]


KVM_IOEVENTFD_FLAG_DATAMATCH = 1 << 0
KVM_IOEVENTFD_FLAG_PIO = 1 << 1
KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 2


class kvm_pit_config(ctypes.Structure):
    """4.71: the in-kernel i8254."""

    _fields_ = [("flags", c_uint32), ("pad", c_uint32 * 15)]


class kvm_stats_header(ctypes.Structure):
    """4.133: the head of the binary statistics file. Offsets in bytes from its start."""

    _fields_ = [
        ("flags", c_uint32),
        ("name_size", c_uint32),
        ("num_desc", c_uint32),
        ("id_offset", c_uint32),
        ("desc_offset", c_uint32),
        ("data_offset", c_uint32),
    ]


class kvm_stats_desc(ctypes.Structure):
    """4.133: one statistic; its name (name_size bytes) follows."""

    _fields_ = [
        ("flags", c_uint32),
        ("exponent", ctypes.c_int16),
        ("size", c_uint16),
        ("offset", c_uint32),
        ("bucket_size", c_uint32),
    ]


KVM_STATS_TYPE_MASK = 0xF
KVM_STATS_TYPE_CUMULATIVE = 0


# --- ioctl numbers (asm-generic/ioctl.h): direction << 30 | size << 16 | type << 8 | number -------------------------
KVMIO = 0xAE


def _IO(number: int) -> int:
    return KVMIO << 8 | number


def _IOW(number: int, argument: type[ctypes._CData]) -> int:
    return 1 << 30 | ctypes.sizeof(argument) << 16 | _IO(number)


def _IOR(number: int, argument: type[ctypes._CData]) -> int:
    return 2 << 30 | ctypes.sizeof(argument) << 16 | _IO(number)


def _IOWR(number: int, argument: type[ctypes._CData]) -> int:
    return _IOW(number, argument) | _IOR(number, argument)


KVM_GET_API_VERSION = _IO(0x00)
KVM_CREATE_VM = _IO(0x01)
KVM_CHECK_EXTENSION = _IO(0x03)
KVM_GET_VCPU_MMAP_SIZE = _IO(0x04)
KVM_GET_SUPPORTED_CPUID = _IOWR(0x05, kvm_cpuid2_header)
KVM_CREATE_VCPU = _IO(0x41)
KVM_SET_USER_MEMORY_REGION = _IOW(0x46, kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = _IO(0x47)
KVM_CREATE_IRQCHIP = _IO(0x60)
KVM_IRQ_LINE = _IOW(0x61, kvm_irq_level)
KVM_IRQFD = _IOW(0x76, kvm_irqfd)
KVM_CREATE_PIT2 = _IOW(0x77, kvm_pit_config)
KVM_IOEVENTFD = _IOW(0x79, kvm_ioeventfd)
KVM_RUN = _IO(0x80)
KVM_GET_REGS = _IOR(0x81, kvm_regs)
KVM_SET_REGS = _IOW(0x82, kvm_regs)
KVM_GET_SREGS = _IOR(0x83, kvm_sregs)
KVM_SET_SREGS = _IOW(0x84, kvm_sregs)
KVM_GET_MSRS = _IOWR(0x88, kvm_msrs_header)
KVM_SET_MSRS = _IOW(0x89, kvm_msrs_header)
KVM_SET_CPUID2 = _IOW(0x90, kvm_cpuid2_header)
KVM_GET_MP_STATE = _IOR(0x98, kvm_mp_state)
KVM_SET_MP_STATE = _IOW(0x99, kvm_mp_state)
KVM_GET_VCPU_EVENTS = _IOR(0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = _IOW(0xA0, kvm_vcpu_events)
KVM_GET_DEBUGREGS = _IOR(0xA1, kvm_debugregs)
KVM_SET_DEBUGREGS = _IOW(0xA2, kvm_debugregs)
KVM_GET_TSC_KHZ = _IO(0xA3)
KVM_GET_XSAVE = _IOR(0xA4, kvm_xsave)
KVM_SET_XSAVE = _IOW(0xA5, kvm_xsave)
KVM_GET_XCRS = _IOR(0xA6, kvm_xcrs)
KVM_SET_XCRS = _IOW(0xA7, kvm_xcrs)
KVM_GET_STATS_FD = _IO(0xCE)

IOCTL_NAMES = {
    value: name
    for name, value in list(globals().items())
    if name.startswith("KVM_") and isinstance(value, int) and value >> 8 & 0xFF == KVMIO
}


# --- capabilities (KVM_CHECK_EXTENSION) ------------------------------------------------------------------------------
class Cap(IntEnum):
    """The KVM_CAP_* numbers this project asks about."""

    IRQCHIP = 0
    USER_MEMORY = 3
    SET_TSS_ADDR = 4
    EXT_CPUID = 7
    NR_VCPUS = 9
    NR_MEMSLOTS = 10
    MP_STATE = 14
    IRQFD = 32
    PIT2 = 33
    IOEVENTFD = 36
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    SYNC_REGS = 74
    READONLY_MEM = 81
    SPLIT_IRQCHIP = 121
    IMMEDIATE_EXIT = 136
    DIRTY_LOG_RING = 192
    BINARY_STATS_FD = 203


class MpState(IntEnum):
    """4.38: KVM_MP_STATE_*."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class Exit(IntEnum):
    """Why KVM_RUN returned: KVM_EXIT_*, section 5."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    X86_RDMSR = 29
    X86_WRMSR = 30


KVM_EXIT_IO_IN = 0
KVM_EXIT_IO_OUT = 1

KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0


# --- struct kvm_run (section 5): byte offsets, since the hot path reads it through memoryview casts ------------------
class Run:
    """Byte offsets in the kvm_run page shared with the kernel."""

    IMMEDIATE_EXIT = 1  # u8
    EXIT_REASON = 8  # u32
    UNION = 32
    IO = 32  # u8 direction, u8 size, u16 port, u32 count: one aligned 64-bit word
    IO_DATA_OFFSET = 40  # u64
    MMIO_PHYS_ADDR = 32  # u64
    MMIO_DATA = 40  # u8[8]
    MMIO_LEN = 48  # u32
    MMIO_IS_WRITE = 52  # u8
    FAIL_ENTRY_REASON = 32  # u64
    INTERNAL_SUBERROR = 32  # u32
    INTERNAL_NDATA = 36  # u32
    EMULATION_FLAGS = 40  # u64
    EMULATION_INSN_SIZE = 48  # u8
    EMULATION_INSN_BYTES = 49  # u8[15]
    SYSTEM_EVENT_TYPE = 32  # u32
    VALID_REGS = 288  # u64: what the kernel copies out at every exit (KVM_CAP_SYNC_REGS, 6.74)
    DIRTY_REGS = 296  # u64: what it takes in at the next entry; it clears the bits
    SYNC_REGS = 304  # struct kvm_regs
    SYNC_SREGS = 448  # struct kvm_sregs


KVM_SYNC_X86_REGS = 1 << 0
KVM_SYNC_X86_SREGS = 1 << 1
