"""What a domain and the hypervisor share in memory: xen/include/public/{xen,arch-x86/xen,features}.h and io/.

Event channels and grants have files of their own. Names are the headers', without their prefixes; every number, size
and offset is checked against them by a test.
"""

from __future__ import annotations

from typing import NamedTuple

from minivmm.layout import Layout

START_INFO_MAGIC = b"xen-3.0-x86_64"
MAX_GUEST_CMDLINE = 1024  # bytes, the ending zero among them

XEN_LEGACY_MAX_VCPUS = 32
FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_PAGE * 512

# arch-x86/xen-x86_64.h: the part of every address space that is the hypervisor's.
HYPERVISOR_VIRT_START = 0xFFFF800000000000
HYPERVISOR_VIRT_END = 0xFFFF880000000000
MACH2PHYS_VIRT_START = 0xFFFF800000000000
MACH2PHYS_VIRT_END = 0xFFFF804000000000

EMULATE_PREFIX = b"\x0f\x0bxen"  # ud2a; .ascii "xen": the instruction after it is the hypervisor's to carry out


class Domid:
    """DOMID_*: domain numbers that name no ordinary domain."""

    FIRST_RESERVED = 0x7FF0
    SELF = 0x7FF0
    IO = 0x7FF1
    XEN = 0x7FF2
    COW = 0x7FF3
    INVALID = 0x7FF4
    IDLE = 0x7FFF


class FlatRing3:
    """FLAT_RING3_*: the selectors a guest may use without a GDT of its own. There is no other ring for it."""

    CS32 = 0xE023
    CS64 = 0xE033
    DS32 = 0xE02B
    DS64 = 0
    SS32 = 0xE02B
    SS64 = 0xE02B


class StartInfoFlag:
    """SIF_*: bits of start_info.flags."""

    PRIVILEGED = 1 << 0
    INITDOMAIN = 1 << 1
    MULTIBOOT_MOD = 1 << 2
    MOD_START_PFN = 1 << 3  # mod_start is a pfn, and the module is not mapped
    VIRT_P2M_4TOOLS = 1 << 4


class StartInfo(NamedTuple):
    """struct start_info of a domain that is not dom0: what a kernel finds at RSI."""

    magic: bytes
    nr_pages: int
    shared_info: int  # machine address
    flags: int  # StartInfoFlag
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    pt_base: int  # virtual address of the L4 table
    nr_pt_frames: int
    mfn_list: int  # virtual address of the p2m list
    mod_start: int  # virtual address, or pfn with MOD_START_PFN
    mod_len: int  # bytes
    cmd_line: bytes
    first_p2m_pfn: int  # of the p2m list and the page tables that map it, where INIT_P2M moved it
    nr_p2m_frames: int


START_INFO = Layout(f"<32sQQI4xQI4xQI4xQQQQQ{MAX_GUEST_CMDLINE}sQQ", StartInfo)


class VcpuTimeInfo(NamedTuple):
    """struct vcpu_time_info: system time from the TSC. An odd version says that it is being written."""

    version: int
    tsc_timestamp: int
    system_time: int  # nanoseconds since the machine started, at tsc_timestamp
    tsc_to_system_mul: int
    tsc_shift: int
    flags: int


VCPU_TIME_INFO = Layout("<I4xQQIbB2x", VcpuTimeInfo)
PVCLOCK_TSC_STABLE_BIT = 1 << 0
PVCLOCK_GUEST_STOPPED = 1 << 1


class ArchVcpuInfo(NamedTuple):
    """struct arch_vcpu_info: where a page-fault handler finds CR2."""

    cr2: int


ARCH_VCPU_INFO = Layout("<Q8x", ArchVcpuInfo)


class VcpuInfo:
    """struct vcpu_info: offsets, as both sides write single fields of it while the other runs."""

    EVTCHN_UPCALL_PENDING = 0  # u8
    EVTCHN_UPCALL_MASK = 1  # u8
    EVTCHN_PENDING_SEL = 8  # u64
    ARCH = 16  # ArchVcpuInfo
    TIME = 32  # VcpuTimeInfo
    SIZE = 64


class SharedInfo:
    """struct shared_info: offsets, for the same reason."""

    VCPU_INFO = 0  # VcpuInfo of the first XEN_LEGACY_MAX_VCPUS vCPUs
    EVTCHN_PENDING = 2048  # u64 x 64
    EVTCHN_MASK = 2560  # u64 x 64
    WC_VERSION = 3072  # u32, odd while the wall clock is being written
    WC_SEC = 3076  # u32
    WC_NSEC = 3080  # u32
    WC_SEC_HI = 3084  # u32
    ARCH = 3088  # ArchSharedInfo
    SIZE = 3136


class ArchSharedInfo(NamedTuple):
    """struct arch_shared_info: what the kernel tells tools of its p2m list."""

    max_pfn: int
    pfn_to_mfn_frame_list_list: int
    nmi_reason: int
    p2m_cr3: int
    p2m_vaddr: int
    p2m_generation: int


ARCH_SHARED_INFO = Layout("<6Q", ArchSharedInfo)


class XenconsInterface:
    """struct xencons_interface (io/console.h): offsets. Indices run freely and are masked by the ring's size."""

    IN = 0  # char x 1024
    OUT = 1024  # char x 2048
    IN_CONS = 3072  # u32, and so the three after it
    IN_PROD = 3076
    OUT_CONS = 3080
    OUT_PROD = 3084
    SIZE = 3088


class XenstoreDomainInterface:
    """struct xenstore_domain_interface (io/xs_wire.h): offsets. Requests to the store, responses from it."""

    REQ = 0  # char x XENSTORE_RING_SIZE
    RSP = 1024
    REQ_CONS = 2048  # u32, and so those after it
    REQ_PROD = 2052
    RSP_CONS = 2056
    RSP_PROD = 2060
    SERVER_FEATURES = 2064
    CONNECTION = 2068
    ERROR = 2072
    SIZE = 2076


XENSTORE_RING_SIZE = 1024  # bytes in each direction
XENSTORE_PAYLOAD_MAX = 4096


class XsdSockmsg(NamedTuple):
    """struct xsd_sockmsg (io/xs_wire.h): the header of a message, `len` bytes follow."""

    type: int  # XsWire
    req_id: int
    tx_id: int
    len: int


XSD_SOCKMSG = Layout("<IIII", XsdSockmsg)


class XsWire:
    """enum xsd_sockmsg_type, XS_*."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


class Feature:
    """XENFEAT_* (features.h): bit numbers in XENVER_get_features and in a kernel's notes."""

    WRITABLE_PAGE_TABLES = 0
    WRITABLE_DESCRIPTOR_TABLES = 1
    AUTO_TRANSLATED_PHYSMAP = 2
    SUPERVISOR_MODE_KERNEL = 3
    PAE_PGDIR_ABOVE_4GB = 4
    MMU_PT_UPDATE_PRESERVE_AD = 5
    HIGHMEM_ASSIST = 6
    GNTTAB_MAP_AVAIL_BITS = 7
    HVM_CALLBACK_VECTOR = 8
    HVM_SAFE_PVCLOCK = 9
    HVM_PIRQS = 10
    DOM0 = 11


class Runstate:
    """RUNSTATE_* (vcpu.h)."""

    RUNNING = 0
    RUNNABLE = 1
    BLOCKED = 2
    OFFLINE = 3


class VcpuRunstateInfo(NamedTuple):
    """struct vcpu_runstate_info (vcpu.h): times in nanoseconds of system time, one a Runstate."""

    state: int
    state_entry_time: int
    running: int
    runnable: int
    blocked: int
    offline: int


VCPU_RUNSTATE_INFO = Layout("<i4x5Q", VcpuRunstateInfo)
RUNSTATE_UPDATE = 1 << 63  # in state_entry_time, while the structure is being written


class IretContext(NamedTuple):
    """struct iret_context (arch-x86/xen-x86_64.h): what the iret hypercall finds at the guest's RSP."""

    rax: int
    r11: int
    rcx: int
    flags: int  # ContextFlag.IN_SYSCALL
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


IRET_CONTEXT = Layout("<9Q", IretContext)


class CpuUserRegs(NamedTuple):
    """struct cpu_user_regs (arch-x86/xen-x86_64.h): selectors are 16 bits of a 64-bit slot."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    error_code: int
    entry_vector: int
    rip: int
    cs: int
    saved_upcall_mask: int
    rflags: int
    rsp: int
    ss: int
    es: int
    ds: int
    fs: int
    gs: int


CPU_USER_REGS = Layout("<15QIIQH2xB3xQQH6xH6xH6xH6xH6x", CpuUserRegs)


class VcpuGuestContext:
    """struct vcpu_guest_context (arch-x86/xen.h): offsets. What VCPUOP_initialise starts a vCPU with."""

    FPU_CTXT = 0  # 512 bytes, as fxsave lays them out
    FLAGS = 512  # u64: VGCF_*
    USER_REGS = 520  # CpuUserRegs
    TRAP_CTXT = 720  # TrapInfo x 256
    LDT_BASE = 4816  # u64, and so all that follow
    LDT_ENTS = 4824
    GDT_FRAMES = 4832  # x 16: mfns
    GDT_ENTS = 4960
    KERNEL_SS = 4968
    KERNEL_SP = 4976
    CTRLREG = 4984  # x 8: CR0 to CR7; CR3 as an mfn shifted
    DEBUGREG = 5048  # x 8
    EVENT_CALLBACK_EIP = 5112
    FAILSAFE_CALLBACK_EIP = 5120
    SYSCALL_CALLBACK_EIP = 5128
    VM_ASSIST = 5136
    FS_BASE = 5144
    GS_BASE_KERNEL = 5152
    GS_BASE_USER = 5160
    SIZE = 5168


class ContextFlag:
    """VGCF_*: bits of vcpu_guest_context.flags, and IN_SYSCALL of IretContext.flags too."""

    I387_VALID = 1 << 0
    IN_KERNEL = 1 << 2
    FAILSAFE_DISABLES_EVENTS = 1 << 3
    SYSCALL_DISABLES_EVENTS = 1 << 4
    ONLINE = 1 << 5
    IN_SYSCALL = 1 << 8  # iret does not restore rcx and r11
