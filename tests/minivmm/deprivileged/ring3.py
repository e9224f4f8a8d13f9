"""A machine of 16 MiB with a monitor, and address spaces of 64 pages to run ring-3 code in."""

from __future__ import annotations

from collections.abc import Collection

from minivmm.deprivileged.cpu import DeprivilegedCpu
from minivmm.deprivileged.events import Event
from minivmm.deprivileged.monitor import Monitor, Selector
from minivmm.kvm.system import Kvm
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.x86.paging import Pte

MONITOR = 8 << 20  # machine address
FRAMES = 1 << 20  # of the pages that are mapped

CODE = 0x40_0000  # linear: the first page
DATA = CODE + 16 * PAGE_SIZE
STACK = CODE + 64 * PAGE_SIZE
UNMAPPED = CODE + 100 * PAGE_SIZE

USER = Pte.PRESENT | Pte.WRITABLE | Pte.USER
READ_ONLY = Pte.PRESENT | Pte.USER
NO_EXECUTE = 1 << 63

PORT = 0x42
OUT = bytes((0xE6, PORT))  # out 0x42, al
SYSCALL = b"\x0f\x05"
UD2 = b"\x0f\x0b"
LOAD = b"\x48\x8b\x07"  # mov rax, [rdi]
STORE = b"\x48\x89\x07"  # mov [rdi], rax


class AddressSpace:
    """Four levels of tables at machine address `tables`; page i of CODE is frame `first + i`."""

    def __init__(self, memory: GuestMemory, tables: int, first: int) -> None:
        self.memory = memory
        self.root, pdpt, directory, self.table = (tables + PAGE_SIZE * level for level in range(4))
        memory.write_u64(self.root, pdpt | USER)
        memory.write_u64(pdpt, directory | USER)
        self.directory_entry = directory + 8 * (CODE >> 21)
        memory.write_u64(self.directory_entry, self.table | USER)
        for page in range(64):
            memory.write_u64(self.table + 8 * page, first + PAGE_SIZE * page | USER)

    def entry(self, address: int) -> int:
        """The machine address of the page-table entry of a linear address."""
        return self.table + 8 * (address - CODE >> 12)

    def frame(self, address: int) -> int:
        return self.memory.read_u64(self.entry(address)) & 0xF_FFFF_F000

    def put(self, address: int, data: bytes) -> None:
        self.memory.write(self.frame(address) + address % PAGE_SIZE, data)


class Ring3:
    """The machine, with two vCPUs; the first is entered in `space`."""

    def __init__(self, *, open_ports: Collection[int] | None = None, call_port: bool = False) -> None:
        self.memory = GuestMemory(16 << 20)
        with Kvm() as kvm:
            self.vm = kvm.create_vm()
            self.vm.set_memory_regions(self.memory.regions)
            self.vcpus = [self.vm.create_vcpu(number) for number in range(2)]
            for vcpu in self.vcpus:
                vcpu.set_cpuid(kvm.supported_cpuid())
        self.monitor = Monitor(self.memory, MONITOR, cpus=len(self.vcpus), open_ports=open_ports, call_port=call_port)
        self.cpus = [DeprivilegedCpu(vcpu, self.monitor, vcpu.id) for vcpu in self.vcpus]
        self.cpu = self.cpus[0]
        self.space = self.address_space(0)

    def address_space(self, number: int) -> AddressSpace:
        space = AddressSpace(self.memory, 0x10000 + 0x8000 * number, FRAMES + (1 << 19) * number)
        self.monitor.install(space.root)
        return space

    def enter(self, code: bytes, **registers: int) -> Event:
        """Runs `code` from its first byte."""
        self.space.put(CODE, code)
        cpu = self.cpu
        cpu.root, cpu.cs, cpu.ss = self.space.root, Selector.USER64, Selector.USER_DATA
        cpu.regs.rip, cpu.regs.rsp = CODE, STACK
        for name, value in registers.items():
            setattr(cpu.regs, name, value)
        return cpu.run()

    def close(self) -> None:
        for cpu, vcpu in zip(self.cpus, self.vcpus, strict=True):
            cpu.close()
            vcpu.close()
        self.vm.close()
        self.memory.close()
