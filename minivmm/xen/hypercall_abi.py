"""Hypercalls, their sub-operations, and the structures they take (xen/include/public/*.h, the header named at each).

Names are the headers', without their prefixes; every number, size and offset is checked against them by a test. Event
channels and grant tables have files of their own. A guest handle is the guest's virtual address of the array.
"""

from __future__ import annotations

from typing import NamedTuple

from minivmm.layout import Layout


class Hypercall:
    """__HYPERVISOR_* (xen.h): the number in EAX."""

    SET_TRAP_TABLE = 0
    MMU_UPDATE = 1
    SET_GDT = 2
    STACK_SWITCH = 3
    SET_CALLBACKS = 4
    FPU_TASKSWITCH = 5
    SCHED_OP_COMPAT = 6
    PLATFORM_OP = 7
    SET_DEBUGREG = 8
    GET_DEBUGREG = 9
    UPDATE_DESCRIPTOR = 10
    MEMORY_OP = 12
    MULTICALL = 13
    UPDATE_VA_MAPPING = 14
    SET_TIMER_OP = 15
    EVENT_CHANNEL_OP_COMPAT = 16
    XEN_VERSION = 17
    CONSOLE_IO = 18
    PHYSDEV_OP_COMPAT = 19
    GRANT_TABLE_OP = 20
    VM_ASSIST = 21
    UPDATE_VA_MAPPING_OTHERDOMAIN = 22
    IRET = 23
    VCPU_OP = 24
    SET_SEGMENT_BASE = 25
    MMUEXT_OP = 26
    XSM_OP = 27
    NMI_OP = 28
    SCHED_OP = 29
    CALLBACK_OP = 30
    XENOPROF_OP = 31
    EVENT_CHANNEL_OP = 32
    PHYSDEV_OP = 33
    HVM_OP = 34
    SYSCTL = 35
    DOMCTL = 36
    KEXEC_OP = 37
    TMEM_OP = 38
    ARGO_OP = 39
    XENPMU_OP = 40
    DM_OP = 41
    HYPFS_OP = 42


class TrapInfo(NamedTuple):
    """struct trap_info: one exception handler, an entry of set_trap_table. A zero address ends the list."""

    vector: int
    flags: int  # bits 0 and 1: the ring `int` may be used from; bit 2: events are masked on entry
    cs: int
    address: int


TRAP_INFO = Layout("<BBH4xQ", TrapInfo)


class MmuUpdate(NamedTuple):
    """struct mmu_update: one entry of a page table, or of the machine-to-physical table."""

    ptr: int  # machine address of the entry; its low two bits are an Mmu number
    val: int


MMU_UPDATE = Layout("<QQ", MmuUpdate)


class Mmu:
    """MMU_*: the low bits of MmuUpdate.ptr."""

    NORMAL_PT_UPDATE = 0
    MACHPHYS_UPDATE = 1
    PT_UPDATE_PRESERVE_AD = 2
    PT_UPDATE_NO_TRANSLATE = 3


class MmuextOp(NamedTuple):
    """struct mmuext_op."""

    cmd: int  # Mmuext
    arg1: int  # mfn or linear_addr
    arg2: int  # nr_ents (its low 32 bits), vcpumask (a handle) or src_mfn


MMUEXT_OP = Layout("<I4xQQ", MmuextOp)


class Mmuext:
    """MMUEXT_*."""

    PIN_L1_TABLE = 0
    PIN_L2_TABLE = 1
    PIN_L3_TABLE = 2
    PIN_L4_TABLE = 3
    UNPIN_TABLE = 4
    NEW_BASEPTR = 5
    TLB_FLUSH_LOCAL = 6
    INVLPG_LOCAL = 7
    TLB_FLUSH_MULTI = 8
    INVLPG_MULTI = 9
    TLB_FLUSH_ALL = 10
    INVLPG_ALL = 11
    FLUSH_CACHE = 12
    SET_LDT = 13
    NEW_USER_BASEPTR = 15
    CLEAR_PAGE = 16
    COPY_PAGE = 17
    FLUSH_CACHE_GLOBAL = 18
    MARK_SUPER = 19
    UNMARK_SUPER = 20


class UpdateVaFlag:
    """UVMF_*: what update_va_mapping flushes, and where."""

    NONE = 0
    TLB_FLUSH = 1
    INVLPG = 2
    FLUSHTYPE_MASK = 3
    MULTI = 0  # the flags' other bits are the address of a vCPU mask
    LOCAL = 0
    ALL = 1 << 2


class MulticallEntry(NamedTuple):
    """struct multicall_entry."""

    op: int  # Hypercall
    result: int
    arg0: int
    arg1: int
    arg2: int
    arg3: int
    arg4: int
    arg5: int


MULTICALL_ENTRY = Layout("<8Q", MulticallEntry)


class ConsoleIo:
    """CONSOLEIO_*."""

    WRITE = 0
    READ = 1


class VmAssistCommand:
    """VMASST_CMD_*."""

    ENABLE = 0
    DISABLE = 1


class VmAssistType:
    """VMASST_TYPE_*."""

    FOUR_GB_SEGMENTS = 0
    FOUR_GB_SEGMENTS_NOTIFY = 1
    WRITABLE_PAGETABLES = 2
    PAE_EXTENDED_CR3 = 3
    ARCHITECTURAL_IOPL = 4
    RUNSTATE_UPDATE_FLAG = 5
    M2P_STRICT = 32


class SegmentBase:
    """SEGBASE_* (arch-x86/xen-x86_64.h)."""

    FS = 0
    GS_USER = 1
    GS_KERNEL = 2
    GS_USER_SEL = 3


class CallbackOp:
    """CALLBACKOP_* (callback.h)."""

    REGISTER = 0
    UNREGISTER = 1


class CallbackType:
    """CALLBACKTYPE_*."""

    EVENT = 0
    FAILSAFE = 1
    SYSCALL = 2
    SYSENTER_DEPRECATED = 3
    NMI = 4
    SYSENTER = 5
    SYSCALL32 = 7


CALLBACKF_MASK_EVENTS = 1 << 0


class CallbackRegister(NamedTuple):
    """struct callback_register."""

    type: int  # CallbackType
    flags: int  # CALLBACKF_MASK_EVENTS
    address: int


CALLBACK_REGISTER = Layout("<HH4xQ", CallbackRegister)


class CallbackUnregister(NamedTuple):
    """struct callback_unregister."""

    type: int


CALLBACK_UNREGISTER = Layout("<H2x", CallbackUnregister)


class SchedOp:
    """SCHEDOP_* (sched.h)."""

    YIELD = 0
    BLOCK = 1
    SHUTDOWN = 2
    POLL = 3
    REMOTE_SHUTDOWN = 4
    SHUTDOWN_CODE = 5
    WATCHDOG = 6
    PIN_OVERRIDE = 7


class Shutdown:
    """SHUTDOWN_* (sched.h): why."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class SchedShutdown(NamedTuple):
    """struct sched_shutdown."""

    reason: int  # Shutdown


SCHED_SHUTDOWN = Layout("<I", SchedShutdown)


class SchedPoll(NamedTuple):
    """struct sched_poll."""

    ports: int  # handle of u32
    nr_ports: int
    timeout: int  # nanoseconds of system time, absolute; 0: none


SCHED_POLL = Layout("<QI4xQ", SchedPoll)


class SchedRemoteShutdown(NamedTuple):
    """struct sched_remote_shutdown."""

    domain_id: int
    reason: int


SCHED_REMOTE_SHUTDOWN = Layout("<H2xI", SchedRemoteShutdown)


class VcpuOp:
    """VCPUOP_* (vcpu.h)."""

    INITIALISE = 0
    UP = 1
    DOWN = 2
    IS_UP = 3
    GET_RUNSTATE_INFO = 4
    REGISTER_RUNSTATE_MEMORY_AREA = 5
    SET_PERIODIC_TIMER = 6
    STOP_PERIODIC_TIMER = 7
    SET_SINGLESHOT_TIMER = 8
    STOP_SINGLESHOT_TIMER = 9
    REGISTER_VCPU_INFO = 10
    SEND_NMI = 11
    GET_PHYSID = 12
    REGISTER_VCPU_TIME_MEMORY_AREA = 13


class VcpuSetSingleshotTimer(NamedTuple):
    """struct vcpu_set_singleshot_timer."""

    timeout_abs_ns: int
    flags: int  # VCPU_SSHOTTMR_FUTURE


VCPU_SET_SINGLESHOT_TIMER = Layout("<QI4x", VcpuSetSingleshotTimer)
VCPU_SSHOTTMR_FUTURE = 1 << 0  # a time that has passed is -ETIME


class VcpuRegisterVcpuInfo(NamedTuple):
    """struct vcpu_register_vcpu_info."""

    mfn: int
    offset: int  # bytes into that page
    rsvd: int


VCPU_REGISTER_VCPU_INFO = Layout("<QII", VcpuRegisterVcpuInfo)


class XenVersion:
    """XENVER_* (version.h)."""

    VERSION = 0
    EXTRAVERSION = 1
    COMPILE_INFO = 2
    CAPABILITIES = 3
    CHANGESET = 4
    PLATFORM_PARAMETERS = 5
    GET_FEATURES = 6
    PAGESIZE = 7
    GUEST_HANDLE = 8
    COMMANDLINE = 9
    BUILD_ID = 10


class XenCompileInfo(NamedTuple):
    """struct xen_compile_info: four texts, ended by zeros."""

    compiler: bytes
    compile_by: bytes
    compile_domain: bytes
    compile_date: bytes


XEN_COMPILE_INFO = Layout("<64s16s32s32s", XenCompileInfo)


class XenFeatureInfo(NamedTuple):
    """struct xen_feature_info: 32 feature bits from 32 * submap_idx on."""

    submap_idx: int
    submap: int


XEN_FEATURE_INFO = Layout("<II", XenFeatureInfo)
