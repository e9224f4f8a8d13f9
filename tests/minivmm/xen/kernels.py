"""Kernels for Xen domains, made in the test that reads or builds them."""

from __future__ import annotations

import struct
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from minivmm.boot.elf import FILE_HEADER_64, PROGRAM_HEADER_64, PT_LOAD, SECTION_HEADER_64, ProgramHeader, SectionHeader
from minivmm.boot.xen_image import XenElfNote, XenImage, read
from minivmm.memory import PAGE_SIZE
from minivmm.outcome import Outcome, RunResult
from minivmm.xen.abi import (
    CPU_USER_REGS,
    ContextFlag,
    CpuUserRegs,
    FlatRing3,
    Runstate,
    SharedInfo,
    VcpuGuestContext,
    VcpuInfo,
)
from minivmm.xen.event_abi import BIND_IPI, BIND_VIRQ, BindIpi, BindVirq, EventOp, Virq
from minivmm.xen.hypercall_abi import TRAP_INFO, Hypercall, SchedOp, TrapInfo
from minivmm.xen.hypervisor import Hypervisor
from minivmm.xen.recount import recount
from minivmm.xen.vcpu import VirtualCpu
from tests.minivmm.images import elf64
from tests.minivmm.xen.assemble import Macro, Program, assemble

VIRT_BASE = 0xFFFFFFFF80000000
KERNEL = 0x100000  # physical
CODE_SIZE = 0x1000

SHT_PROGBITS, SHT_STRTAB, SHT_NOTE = 1, 3, 7

Notes = Mapping[int, int | bytes]

LINUX_LIKE: dict[int, int | bytes] = {
    XenElfNote.ENTRY: VIRT_BASE + KERNEL,
    XenElfNote.VIRT_BASE: VIRT_BASE,
    XenElfNote.GUEST_OS: b"linux\0",
    XenElfNote.XEN_VERSION: b"xen-3.0\0",
    XenElfNote.LOADER: b"generic\0",
    XenElfNote.FEATURES: b"!writable_page_tables|pae_pgdir_above_4gb\0",
}


def xen_notes(notes: Notes) -> bytes:
    """The notes as an ELF file holds them."""
    parts = []
    for type, value in notes.items():
        desc = value if isinstance(value, bytes) else struct.pack("<Q", value)
        parts.append(struct.pack("<III", 4, len(desc), type) + b"Xen\0" + desc + bytes(-len(desc) % 4))
    return b"".join(parts)


def loads(*segments: tuple[int, int, int], count: int = 0) -> list[ProgramHeader]:
    """PT_LOADs of (physical address, bytes in the file, bytes in memory); `count` program headers in all."""
    offset = FILE_HEADER_64.size + (count or len(segments) + 1) * PROGRAM_HEADER_64.size
    return [ProgramHeader(PT_LOAD, 7, offset, paddr, paddr, filesz, memsz, 4096) for paddr, filesz, memsz in segments]


def kernel_bytes(
    notes: Notes = LINUX_LIKE,
    *,
    code: bytes = b"\xf4" * CODE_SIZE,
    bss: int = 0x2000,
    paddr: int = KERNEL,
) -> bytes:
    """An ELF kernel with PT_NOTE: `code`, and `bss` bytes after it."""
    return elf64(code, entry=paddr, segments=loads((paddr, len(code), len(code) + bss)), note=xen_notes(notes))


def with_sections(image: bytes, sections: Mapping[str, tuple[int, bytes]]) -> bytes:
    """`image` with section headers: name to type and content."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in [*sections, ".shstrtab"])
    content, headers = bytearray(image), [SectionHeader(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    for name, (type, data) in {**sections, ".shstrtab": (SHT_STRTAB, names)}.items():
        at = names.index(name.encode() + b"\0")
        headers.append(SectionHeader(at, type, 0, 0, len(content), len(data), 0, 0, 1, 0))
        content += data
    header = FILE_HEADER_64.unpack(image)._replace(
        shoff=len(content), shentsize=SECTION_HEADER_64.size, shnum=len(headers), shstrndx=len(headers) - 1
    )
    content += SECTION_HEADER_64.pack_all(headers)
    content[16 : FILE_HEADER_64.size] = FILE_HEADER_64.pack(header)[16:]
    return bytes(content)


def legacy_kernel(text: str, **options: int) -> bytes:
    """A kernel that describes itself in a section __xen_guest only."""
    code = b"\xf4" * CODE_SIZE
    image = elf64(code, entry=KERNEL, segments=loads((KERNEL, len(code), options.get("memsz", 0x3000)), count=1))
    return with_sections(image, {"__xen_guest": (SHT_PROGBITS, text.encode() + b"\0")})


def write(directory: Path, data: bytes) -> Path:
    """A file of these bytes."""
    path = directory / "kernel"
    path.write_bytes(data)
    return path


def kernel(directory: Path, notes: Notes = LINUX_LIKE, **options: int) -> XenImage:
    """The kernel of `kernel_bytes`, read."""
    return read(write(directory, kernel_bytes(notes, **options)))  # type: ignore[arg-type]


# -- kernels that run: a page of memory for everything they need, at the same place in all of them

ENTRY = VIRT_BASE + KERNEL
PAGES = (
    *("code", "code1", "code2", "code3", "records", "records1", "scratch", "scratch1", "trap_stack", "stack"),
    *("user_stack", "stack1", "shared_info", "spare", "zero", "hypercall_page"),
)
CODE_PAGES = 4
STACKS = ("trap_stack", "stack", "user_stack", "stack1")
MEMORY = 5 << 20  # 4 MiB are mapped at VIRT_BASE; the frames behind the rest are mapped nowhere
SPARE_PFN = 1024
READ_WRITE, READ_ONLY = 0x67, 0x65  # of a page-table entry, as a guest writes it
LAYOUT = {name: ENTRY + index * PAGE_SIZE for index, name in enumerate(PAGES)}
SYMBOLS = {
    **LAYOUT,
    **{f"{name}_top": LAYOUT[name] + PAGE_SIZE for name in STACKS},
    "pending": LAYOUT["shared_info"],
    "mask": LAYOUT["shared_info"] + VcpuInfo.EVTCHN_UPCALL_MASK,
    "selector": LAYOUT["shared_info"] + VcpuInfo.EVTCHN_PENDING_SEL,
    "fault_address": LAYOUT["shared_info"] + VcpuInfo.ARCH,
    "time": LAYOUT["shared_info"] + VcpuInfo.TIME,
    "port_pending": LAYOUT["shared_info"] + SharedInfo.EVTCHN_PENDING,
    "port_mask": LAYOUT["shared_info"] + SharedInfo.EVTCHN_MASK,
    "ready": LAYOUT["zero"] + 8,
    "go": LAYOUT["zero"] + 16,
    "SEND": EventOp.SEND.value,
    "UNMASK": EventOp.UNMASK.value,
    "BIND_VCPU": EventOp.BIND_VCPU.value,
    "kernel_cs": 0xE030,  # as a frame shows it: RPL 0
    "user_cs": FlatRing3.CS64,
    "flat_ss": FlatRing3.SS64,
}
HYPERCALLS = {name.lower(): number for name, number in vars(Hypercall).items() if name.isupper()}
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


def _hypercall(arguments: Sequence[str]) -> list[str]:
    """`hypercall NAME, arguments...`: by `syscall`. RCX and R11 are lost."""
    name, *values = arguments
    loads = [f"mov {register}, {value}" for register, value in zip(ARGUMENTS, values, strict=False)]
    return [*loads, f"mov eax, {HYPERCALLS[name]}", "syscall"]


def _record(arguments: Sequence[str]) -> list[str]:
    """`record WHAT`: one word at R15, which moves on. R14 is scratch here and below; flags are left alone."""
    return [f"mov r14, {arguments[0]}", "mov [r15], r14", "lea r15, [r15 + 8]"]


def _record_frame(arguments: Sequence[str]) -> list[str]:
    """`record_frame COUNT`: as many words of the stack."""
    return [line for index in range(int(arguments[0])) for line in _record([f"[rsp + {8 * index}]"])]


def _iret_to(arguments: Sequence[str]) -> list[str]:
    """`iret_to RIP, CS, RFLAGS, RSP, SS, FLAGS`: an iret_context, and the hypercall."""
    rip, cs, rflags, rsp, ss, flags = arguments
    words = (ss, rsp, rflags, cs, rip, flags)
    pushes = [line for word in words for line in (f"mov r14, {word}", "push r14")]
    return [*pushes, "push rcx", "push r11", "push rax", f"mov eax, {Hypercall.IRET}", "syscall"]


# What every event callback does with the words of its vCPU: takes them, and records which ports had one. R13 is lost.
TAKE_EVENTS = [
    *("mov byte [pending], 0", "mov r13, 0", "xchg [selector], r13", "mov r13, 0", "xchg [port_pending], r13"),
    *_record(["r13"]),
]
# The way back from a frame without error code, by iret; R14 and the registers a hypercall takes are lost.
RETURN = ["pop rcx", "pop r11", "push 0", "push rcx", "push r11", "push rax", f"mov eax, {Hypercall.IRET}", "syscall"]

MACROS: dict[str, Macro] = {
    "take_events": lambda _arguments: TAKE_EVENTS,
    "return": lambda _arguments: RETURN,
    "hypercall": _hypercall,
    "record": _record,
    "record_frame": _record_frame,
    "iret_to": _iret_to,
    "to_user": lambda arguments: _iret_to([arguments[0], "user_cs", "0x202", "user_stack_top", "flat_ss", "0"]),
    "up": lambda _arguments: [*_hypercall(["vcpu_op", "0", "1", "scratch"]), *_hypercall(["vcpu_op", "1", "1", "0"])],
    "shutdown": lambda _arguments: _hypercall(["sched_op", str(SchedOp.SHUTDOWN), "zero"]),
    # An entry of a trap table: `trap VECTOR, FLAGS, HANDLER`. Two zero words end the table.
    "trap": lambda arguments: [f"db {arguments[0]}, {arguments[1]}", "dw user_cs", "dd 0", f"dq {arguments[2]}"],
    "end_of_traps": lambda _arguments: ["dq 0, 0"],
}


@cache
def _blank() -> XenImage:
    """The kernel of every Guest, before its code is written into it."""
    notes = {**LINUX_LIKE, XenElfNote.HYPERCALL_PAGE: LAYOUT["hypercall_page"]}
    code, bss = bytes(CODE_PAGES * PAGE_SIZE), (len(PAGES) - CODE_PAGES) * PAGE_SIZE
    with tempfile.TemporaryDirectory() as directory:
        return read(write(Path(directory), kernel_bytes(notes, code=code, bss=bss)))


NO_HANDLERS: Mapping[int, str] = {}


class Guest:
    """A domain whose kernel is assembled once its frames are known. A context manager: every frame comes back."""

    def __init__(self, hypervisor: Hypervisor, *, vcpus: int = 1, name: str = "") -> None:
        self.hypervisor = hypervisor
        self.core = hypervisor.core
        self._free = self.core.frames.free_frames, len(hypervisor.free_cpus)
        self.domain = hypervisor.create_domain(_blank(), MEMORY, vcpus=vcpus, name=name)
        self.domid = self.domain.domid
        self.labels: dict[str, int] = {}
        self.map("shared_info", self.domain.shared_info // PAGE_SIZE)

    @property
    def vcpu(self) -> VirtualCpu:
        return self.domain.vcpus[0]

    def map(self, where: str, mfn: int, bits: int = READ_WRITE) -> None:
        """As update_va_mapping, before the domain runs."""
        with self.core.lock:
            self.core.tables.update_va_mapping(self.domid, self.address(where), mfn << 12 | bits)

    def address(self, name: str) -> int:
        return {**SYMBOLS, **self.labels}[name]

    def frame(self, name: str) -> int:
        """The frame that was behind the page of `name` at first."""
        return self.domain.mfns[self.address(name) - VIRT_BASE >> 12]

    def spare(self, index: int = 0) -> int:
        """A frame that is mapped nowhere."""
        return self.domain.mfns[SPARE_PFN + index]

    def give_user_space(self, vcpu: int = 0) -> int:
        """User page tables that map what the kernel's map: one L4 of their own, frame spare(9). Returns it."""
        root, tables, memory = self.spare(9), self.core.tables, self.core.memory
        with self.core.lock:
            if not tables.is_page_table(self.domid, root):
                kernel = memory.read_u64(tables.kernel_roots[self.domid, 0] * PAGE_SIZE + 8 * 511)
                memory.write_u64(root * PAGE_SIZE + 8 * 511, kernel)
                tables.pin(self.domid, root, 4)
            tables.new_user_baseptr(self.domid, root, vcpu)
        return root

    def load(self, source: str, **symbols: int) -> Program:
        """Assembles the kernel. It begins with R15 where it records, and a stack."""
        prologue = "mov r15, records\nmov rsp, stack_top\n"
        program = assemble(prologue + source, ENTRY, {**SYMBOLS, **symbols}, MACROS)
        assert len(program.code) <= CODE_PAGES * PAGE_SIZE
        for at in range(0, len(program.code), PAGE_SIZE):
            frame = self.domain.mfns[(KERNEL + at) >> 12]
            self.core.memory.write(frame << 12, program.code[at : at + PAGE_SIZE])
        self.labels = program.labels
        return program

    def start(self, timeout: float = 30.0) -> None:
        self.hypervisor.start(self.domain, timeout)

    def wait(self) -> RunResult:
        return self.hypervisor.wait(self.domain)

    def run(self, source: str, timeout: float = 30.0, **symbols: int) -> RunResult:
        """Runs it to its end, whichever that is."""
        self.load(source, **symbols)
        self.start(timeout)
        return self.wait()

    def finish(self) -> list[int]:
        """Waits for a kernel that shuts down. Returns what it has recorded."""
        result = self.wait()
        assert result.outcome is Outcome.SHUTDOWN, f"{result.outcome} {result.detail}\n{result.dump}"
        return self.recorded()

    def records(self, source: str, **symbols: int) -> list[int]:
        """What a kernel that shuts down has recorded."""
        self.load(source, **symbols)
        self.start()
        return self.finish()

    def bind_ipi(self, vcpu: int = 0) -> int:
        """A port, bound as the kernel would before it lets events in."""
        return BIND_IPI.unpack(self._operate(EventOp.BIND_IPI, BIND_IPI.pack(BindIpi(vcpu, 0)))).port

    def bind_virq(self, virq: Virq, vcpu: int = 0) -> int:
        return BIND_VIRQ.unpack(self._operate(EventOp.BIND_VIRQ, BIND_VIRQ.pack(BindVirq(virq, vcpu, 0)))).port

    def _operate(self, operation: EventOp, argument: bytes) -> bytes:
        with self.core.lock:
            return self.core.events.event_channel_op(self.domid, operation, argument)

    def wait_until_ready(self, value: int = 1) -> None:
        """Until the running kernel has stored `value` at `ready`."""
        for _ in range(30_000):
            if self.word("ready") == value:
                return
            assert self.domain.end is None, f"{self.domain.end}\n{self.domain.dump}"
            time.sleep(0.001)
        raise AssertionError(f"it has stored {self.word('ready')}")

    def wait_until_blocked(self, vcpu: int = 0) -> None:
        """Until a vCPU sleeps."""
        for _ in range(30_000):
            if self.domain.vcpus[vcpu].runstate == Runstate.BLOCKED:
                return
            time.sleep(0.001)
        raise AssertionError("it does not sleep")

    def prepare_vcpu(self, entry: str, *, handlers: Mapping[int, str] = NO_HANDLERS, **fields: int) -> None:
        """A vcpu_guest_context for the second vCPU in the pages `scratch` and `scratch1`: it begins at `entry`, in the
        kernel, with R15 and a stack of its own. `handlers` are labels by vector; `fields` are registers, or fields of
        the context by their names, `cr1` being the root of user code."""
        registers = dict.fromkeys(CpuUserRegs._fields, 0) | {
            "rip": self.address(entry),
            "rsp": self.address("stack1_top"),
            "rflags": 0x202,
            "r15": self.address("records1"),
            "cs": FlatRing3.CS64,
            "ss": FlatRing3.SS64,
        }
        root = self.core.tables.kernel_roots[self.domid, 0]
        words = {"flags": ContextFlag.IN_KERNEL, "cr3": root * PAGE_SIZE, "kernel_sp": self.address("stack1_top")}
        places = {"cr3": VcpuGuestContext.CTRLREG + 8 * 3, "cr1": VcpuGuestContext.CTRLREG + 8}
        context = bytearray(VcpuGuestContext.SIZE)
        for name, value in fields.items():
            (registers if name in registers else words)[name] = value
        CPU_USER_REGS.pack_into(context, VcpuGuestContext.USER_REGS, CpuUserRegs(**registers))
        for name, value in words.items():
            struct.pack_into("<Q", context, places.get(name) or getattr(VcpuGuestContext, name.upper()), value)
        for index, (vector, label) in enumerate(handlers.items()):
            info = TrapInfo(vector, 0, FlatRing3.CS64, self.address(label))
            TRAP_INFO.pack_into(context, VcpuGuestContext.TRAP_CTXT + index * TRAP_INFO.size, info)
        first = self.frame("scratch") * PAGE_SIZE
        self.core.memory.write(first, bytes(context[:PAGE_SIZE]))
        self.core.memory.write(self.frame("scratch1") * PAGE_SIZE, bytes(context[PAGE_SIZE:]))

    def recorded(self, vcpu: int = 0) -> list[int]:
        """The words a vCPU has recorded: `records1` is the second's."""
        page = ("records", "records1")[vcpu]
        count = (self.domain.vcpus[vcpu].regs.r15 - self.address(page)) // 8
        data = self.core.memory.read(self.frame(page) * PAGE_SIZE, 8 * count)
        return list(struct.unpack(f"<{count}Q", data))

    def word(self, name: str, offset: int = 0) -> int:
        """A word of its memory, by the page tables it started with."""
        where = self.address(name) + offset
        return self.core.memory.read_u64(self.domain.mfns[where - VIRT_BASE >> 12] * PAGE_SIZE + where % PAGE_SIZE)

    def set_word(self, name: str, value: int) -> None:
        where = self.address(name)
        self.core.memory.write_u64(self.domain.mfns[where - VIRT_BASE >> 12] * PAGE_SIZE + where % PAGE_SIZE, value)

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.hypervisor.destroy(self.domain)
        if kind is None:
            assert recount(self.core.tables) == []


def error(number: int) -> int:
    """RAX of a hypercall that failed with this errno."""
    return -number & (1 << 64) - 1
