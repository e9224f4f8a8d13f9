"""A machine assembled and run: memory, image, devices, vCPUs; started, watched against its deadline, ended, released.

The machine is QEMU's `-M microvm,acpi=off` as a guest sees it (docs/machine.md), so one guest file runs on both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minivmm.boot.loader import Boot, load
from minivmm.bus import Bus
from minivmm.devices import debug_exit, i8042, pvpanic
from minivmm.devices.serial import Serial
from minivmm.errors import ConfigError, HostError, KvmError
from minivmm.kvm import abi
from minivmm.kvm.abi import Cap, Exit
from minivmm.kvm.kick import accept_kicks
from minivmm.kvm.system import Kvm
from minivmm.life import Life
from minivmm.memory import GuestMemory
from minivmm.outcome import EndOfRun, Outcome
from minivmm.processor import Processor

if TYPE_CHECKING:
    from minivmm.exits import Observer
    from minivmm.slots import VirtioSlots
    from minivmm.virtio.block import Disk

SERIAL_PORT, SERIAL_IRQ = 0x3F8, 4
MAX_CPUS = 64
PAUSE_LIMIT = 3.0  # seconds a vCPU may be held in a device before it stands still


class Machine(Life):
    """A virtual machine that boots `image`.

    memory: bytes of RAM. cmdline: the kernel command line; where virtio devices are is appended to it. console: gets
    serial output as it comes, on a vCPU's thread. irqchip: interrupt controllers and timer in the kernel; without them
    the guest has none and hlt ends the run. notify: who carries virtio notifications, see minivmm.slots. on_exit: sees
    every exit to user space (minivmm.exits), on the vCPU's thread; several times slower.

    Everything is made here, so that a fault in image, sizes or disks shows before anything runs: raises ImageError,
    ConfigError, HostError. Use it as a context manager, or call close().
    """

    def __init__(
        self,
        image: str | Path,
        *,
        memory: int = 64 << 20,
        cpus: int = 1,
        cmdline: str = "",
        disks: Sequence[Disk] = (),
        boot: Boot = Boot.AUTO,
        console: Callable[[bytes], None] | None = None,
        virtio_console: bool = False,
        rng: bool = False,
        irqchip: bool = True,
        notify: str = "inline",
        on_exit: Observer | None = None,
    ) -> None:
        if not 1 <= cpus <= MAX_CPUS:
            raise ConfigError(f"{cpus} vCPUs cannot be made", cause=f"from 1 to {MAX_CPUS}", remedy="--cpus 1")
        super().__init__(console)
        self._observer = on_exit
        self.paused = False
        self.processors: list[Processor] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self._release.close)
            self.memory = GuestMemory(memory)
            self._release.callback(self.memory.close)
            self.bus = Bus()
            self._assemble(image, cpus, cmdline, boot, irqchip, (disks, virtio_console, rng, notify))
            undo.pop_all()

    # --- assembly ----------------------------------------------------------------------------------------------------
    def _assemble(
        self,
        image: str | Path,
        cpus: int,
        cmdline: str,
        boot: Boot,
        irqchip: bool,
        virtio: tuple[Sequence[Disk], bool, bool, str],
    ) -> None:
        """Slots, then irqchip, then vCPUs: the cheap order on every back end (docs/backends.md)."""
        with Kvm() as kvm:
            self.vm = kvm.create_vm()
            self._release.callback(self.vm.close)
            if cpus > (most := self.vm.check_extension(Cap.MAX_VCPUS)):
                raise ConfigError(f"{cpus} vCPUs cannot be made", cause=f"this host's KVM allows {most}")
            self.vm.set_memory_regions(self.memory.regions)
            if irqchip:
                self.vm.set_tss_address()
                self.vm.create_irqchip()
                self.vm.create_pit()
            cmdline = self._add_devices(cmdline, irqchip, virtio)
            entry = load(image, self.memory, cmdline, boot)
            cpuid = kvm.supported_cpuid()
        for index in range(cpus):
            vcpu = self.vm.create_vcpu(index)
            self._release.callback(vcpu.close)
            _set_apic_id(cpuid, index)
            vcpu.set_cpuid(cpuid)
            self.processors.append(Processor(vcpu, self.bus, self._processor_ended, self._observer))
        first = self.processors[0].vcpu
        fresh = first.get_sregs()
        entry.sregs.apic_base, entry.sregs.cr8 = fresh.apic_base, fresh.cr8
        first.set_sregs(entry.sregs)
        first.set_regs(entry.regs)

    def _add_devices(self, cmdline: str, irqchip: bool, virtio: tuple[Sequence[Disk], bool, bool, str]) -> str:
        """Puts the devices on the bus; returns the command line that tells the guest of them."""
        self.serial = Serial(self._console_output, self._interrupt_line(SERIAL_IRQ) if irqchip else _no_line)
        self.bus.add_port_device(SERIAL_PORT, 8, self.serial)
        self.bus.add_ports(debug_exit.PORT, 4, debug_exit.DebugExit())
        self.bus.add_ports(i8042.PORT, 1, i8042.KeyboardController())
        self.bus.add_ports(pvpanic.PORT, 1, pvpanic.PvPanic())
        disks, virtio_console, rng, notify = virtio
        self.virtio: VirtioSlots | None = None
        if not (disks or virtio_console or rng):
            return cmdline
        if not irqchip:
            raise ConfigError("virtio devices need the interrupt controller", remedy="irqchip=True")
        from minivmm.slots import VirtioSlots

        self.virtio = VirtioSlots(self.memory, self.bus, self.vm, notify=notify)
        self._release.callback(self.virtio.close)
        for disk in disks:
            self.virtio.add_disk(disk)
        if virtio_console:
            self.virtio.add_console(self._console_output)
        if rng:
            self.virtio.add_entropy()
        return " ".join(filter(None, (cmdline, *self.virtio.announcements)))

    def _interrupt_line(self, gsi: int) -> Callable[[bool], None]:
        vm = self.vm
        return lambda level: vm.irq_line(gsi, level)

    # --- life --------------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        accept_kicks()
        if self.virtio is not None:
            self.virtio.start()
        for processor in self.processors:
            processor.start()

    def _halt(self) -> None:
        for processor in self.processors:
            processor.stop()
        for processor in self.processors:
            while processor.is_alive():
                processor.join(0.05)
                processor.kick()

    def pause(self) -> None:
        """Its vCPUs stand still from when this returns until resume(); one that has not started will not begin.

        Time does not stand still: the deadline stays where it is, and the guest sees by its clocks how long it stood.
        Thread-safe. Raises HostError when a vCPU is held in a device for too long; the machine goes on then.
        """
        self.paused = True
        for processor in self.processors:
            processor.pause()
        if not self._started or all(processor.stands(PAUSE_LIMIT) for processor in self.processors):
            return
        self.resume()
        raise HostError(
            f"a vCPU has not stood still within {PAUSE_LIMIT:g} s",
            cause="a device of it waits for the host: a disk, or whoever reads the console",
            remedy="try again",
        )

    def resume(self) -> None:
        """A paused machine goes on. Thread-safe."""
        self.paused = False
        for processor in self.processors:
            processor.resume()

    def press_power_button(self) -> None:
        """Raises ConfigError: it has none."""
        raise ConfigError(
            "the machine has no power button", cause="it has no ACPI to tell its guest with", remedy="stop it"
        )

    def balloon(self, size: int) -> None:
        """Raises ConfigError: it has none."""
        raise ConfigError(f"the machine cannot be made to do with {size} bytes", cause="it has no balloon device")

    def balloon_size(self) -> int:
        """Raises ConfigError: it has none."""
        raise ConfigError("the machine has no balloon device")

    def send(self, data: bytes) -> None:
        """Bytes for the guest's serial port. Thread-safe. See `pending_input` for how many it has not read yet."""
        self.serial.receive(data)

    @property
    def pending_input(self) -> int:
        """Bytes sent to the serial port that the guest has not read yet."""
        return self.serial.pending_input

    @property
    def exits(self) -> dict[str, int]:
        """KVM exits to user space so far, by reason, over all vCPUs."""
        totals = [sum(column) for column in zip(*(processor.counts for processor in self.processors), strict=True)]
        return {reason.name.lower(): totals[reason] for reason in Exit if totals[reason]}

    def kernel_stats(self) -> dict[str, int]:
        """KVM's own counters summed over the vCPUs ("exits", "io_exits", …); empty where the kernel has none."""
        totals: dict[str, int] = {}
        for counters in self.vcpu_stats():
            for name, value in counters.items():
                totals[name] = totals.get(name, 0) + value
        return totals

    def vcpu_stats(self) -> list[dict[str, int]]:
        """KVM's own counters of each vCPU."""
        return [processor.vcpu.stats() for processor in self.processors]

    def vcpu_threads(self) -> list[int]:
        """The kernel's ids of the threads that run the vCPUs; 0 before they are started."""
        return [processor.native_id or 0 for processor in self.processors]

    def _watch(self) -> None:
        """Waits for the end; notices the deadline, and a guest that has put itself to sleep for good.

        With the in-kernel irqchip a hlt with interrupts off never exits. So when no exit has come for a while, each
        vCPU is kicked once and looks at itself: 20 us of its time, at most ten times a second, only while it is idle.
        """
        pause, seen = 0.01, -1
        while not self._ended.wait(max(min(pause, self._deadline - time.monotonic()), 0)):
            if time.monotonic() >= self._deadline:
                self._note_deadline()
                return
            count = sum(sum(processor.counts) for processor in self.processors)
            if self.paused:
                pause = 0.1
            elif count == seen and all(processor.look(timeout=0.1) for processor in self.processors):
                if all(processor.asleep for processor in self.processors):
                    self._note_end(EndOfRun(Outcome.HALTED, "every vCPU is in hlt with interrupts off"))
                    return
                pause = min(2 * pause, 0.1)
            elif count != seen:
                pause = 0.01
            seen = count

    def _processor_ended(self, processor: Processor, end: EndOfRun) -> None:
        self._note_end(end, processor)

    def _registers(self) -> dict[str, int]:
        """The registers of the vCPU that ended the run, or of the first one."""
        culprit = self._culprit
        vcpu = (culprit if isinstance(culprit, Processor) else self.processors[0]).vcpu
        try:
            regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        except KvmError:
            return {}
        names = [name for name, *_ in abi.kvm_regs._fields_]
        return {name: getattr(regs, name) for name in names} | {
            "cs": sregs.cs.selector,
            **{name: getattr(sregs, name) for name in ("cr0", "cr2", "cr3", "cr4", "efer")},
        }


def _no_line(level: bool) -> None:
    """The interrupt line of a machine without interrupt controller: wired to nothing."""


def _set_apic_id(cpuid: abi.kvm_cpuid2, apic_id: int) -> None:
    """Makes the leaves say which CPU this is (SDM 2A, CPUID: leaf 1 EBX[31:24], leaf 0xB EDX)."""
    for leaf in cpuid.entries[: cpuid.nent]:
        if leaf.function == 1:
            leaf.ebx = leaf.ebx & 0x00FFFFFF | apic_id << 24
        elif leaf.function == 0xB:
            leaf.edx = apic_id
