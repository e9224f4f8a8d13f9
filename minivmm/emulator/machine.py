"""A RISC-V machine assembled and run: QEMU's `-M virt -bios none` with one hart, made of software.

It has the verbs, outcomes and deadline of minivmm.Machine.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minivmm.devices.serial import Serial
from minivmm.emulator import clint, finisher, image, plic, virt
from minivmm.emulator.assembly import ABI_NAMES
from minivmm.emulator.hart import Hart
from minivmm.emulator.physical import AddressSpace, Ram
from minivmm.errors import ConfigError
from minivmm.life import Life
from minivmm.outcome import EndOfRun, Outcome

if TYPE_CHECKING:
    from minivmm.emulator.trace import Tracer
    from minivmm.virtio.block import Disk
    from minivmm.virtio.console import Console
    from minivmm.virtio.device import VirtioDevice
    from minivmm.virtio.mmio import VirtioMmio

IDLE_LOOK = 1.0  # seconds an idle hart waits at most before it looks again
A0, A1 = 10, 11

HOST, INSTRUCTIONS = "host", "instructions"
INTERPRET, TRANSLATE = "interpret", "translate"


class Figures(NamedTuple):
    """What a run cost."""

    instructions: int  # retired
    cpu_seconds: float  # of the thread that executes
    mips: float  # millions of instructions per second of that
    traps: int
    blocks: int  # decoded, each time anew
    decoded: int  # instructions in them
    invalidated: int  # pages whose code was overwritten
    flushed: int  # times all decoded code was forgotten
    walks: int  # of page tables


class RiscvMachine(Life):
    """A machine that boots `image`: ELF64 for RISC-V, or raw bytes that are put at 0x8000_0000 and entered there.

    memory: bytes of RAM. cmdline: /chosen/bootargs of the device tree, whose address is in a1. console: gets serial
    output as it comes, on the hart's thread. disks: virtio-blk devices, the first in the lowest slot. clock: "host", or
    "instructions" for a time that advances with every instruction, so that a run repeats itself exactly. entropy:
    where the virtio entropy device (rng) gets its bytes. accelerator: "interpret", or "translate" for dynamic
    translation to x86-64 (emulator.translator). tracer: is told what the engine does (emulator.trace), which is slow.

    Everything is made here: raises ImageError, ConfigError, HostError. Use it as a context manager, or call close().
    """

    def __init__(
        self,
        image: str | Path,
        *,
        memory: int = 64 << 20,
        cmdline: str = "",
        disks: Sequence[Disk] = (),
        console: Callable[[bytes], None] | None = None,
        virtio_console: bool = False,
        rng: bool = False,
        entropy: Callable[[int], bytes] = os.urandom,
        clock: str = HOST,
        accelerator: str = INTERPRET,
        tracer: Tracer | None = None,
    ) -> None:
        if clock not in (HOST, INSTRUCTIONS):
            raise ConfigError(f"no such clock: {clock!r}", cause=f"known are {HOST} and {INSTRUCTIONS}")
        if accelerator not in (INTERPRET, TRANSLATE):
            raise ConfigError(f"no such accelerator: {accelerator!r}", cause=f"known are {INTERPRET} and {TRANSLATE}")
        super().__init__(console)
        self._wake = threading.Event()
        self._cpu_seconds = 0.0
        self._executes = 0  # the thread that does
        self._thread = threading.Thread(target=self._run, name="hart-0", daemon=True)
        self.transports: list[VirtioMmio] = []
        self.virtio_console: Console | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self._release.close)
            self.memory = Ram(memory)
            self._release.callback(self.memory.close)
            self.space = AddressSpace(self.memory)
            self._release.callback(self.space.close)
            self.hart = self._make_hart(accelerator, tracer)
            self._release.callback(self.hart.close)
            self._add_devices(clock, disks, virtio_console, entropy if rng else None)
            self._load(image, cmdline)
            undo.pop_all()

    # --- assembly ----------------------------------------------------------------------------------------------------
    def _make_hart(self, accelerator: str, tracer: Tracer | None) -> Hart:
        kind: type[Hart] = Hart
        if accelerator == TRANSLATE:
            from minivmm.emulator.translator.hart import TranslatingHart

            kind = TranslatingHart
        if tracer is not None:
            from minivmm.emulator.trace import traced

            kind = traced(kind, tracer)
        return kind(self.space, self._lines, self._time)

    def _add_devices(
        self, clock: str, disks: Sequence[Disk], virtio_console: bool, entropy: Callable[[int], bytes] | None
    ) -> None:
        hart, space = self.hart, self.space
        source = clint.HostClock() if clock == HOST else clint.InstructionClock(lambda: hart.retired)
        self._clint = clint.Clint(source, hart.attend)
        self._plic = plic.Plic(self._line_changed)
        self.serial = Serial(self._console_output, lambda level: self._plic.set_level(virt.UART_IRQ, level))
        space.add(clint.BASE, clint.SIZE, self._clint)
        space.add(plic.BASE, plic.SIZE, self._plic)
        space.add(finisher.BASE, finisher.SIZE, finisher.Finisher())
        space.add(virt.UART, virt.UART_SIZE, self.serial)
        if disks:
            from minivmm.virtio.block import Block

            for disk in disks:
                self._add_virtio(Block(disk))
        if virtio_console:
            from minivmm.virtio.console import Console

            self.virtio_console = Console(self._console_output)
            self._add_virtio(self.virtio_console)
        if entropy is not None:
            from minivmm.virtio.entropy import Entropy

            self._add_virtio(Entropy(source=entropy))
        for slot in range(len(self.transports), virt.VIRTIO_SLOTS):
            space.add(virt.VIRTIO + slot * virt.VIRTIO_SIZE, virt.VIRTIO_SIZE, virt.EmptySlot())

    def _add_virtio(self, device: VirtioDevice) -> None:
        from minivmm.virtio.mmio import VirtioMmio

        slot = len(self.transports)
        if slot >= virt.VIRTIO_SLOTS:
            device.close()
            raise ConfigError(f"more than {virt.VIRTIO_SLOTS} virtio devices do not fit the machine")
        transport = VirtioMmio(device, self.memory, lambda: self._plic.pulse(virt.VIRTIO_IRQ + slot))
        self._release.callback(transport.close)
        self.transports.append(transport)
        self.space.add(virt.VIRTIO + slot * virt.VIRTIO_SIZE, virt.VIRTIO_SIZE, transport)

    def _load(self, path: str | Path, cmdline: str) -> None:
        """The state QEMU's boot ROM leaves: a0 the hart's number, a1 the device tree."""
        tree = virt.device_tree(self.memory.size, cmdline)
        self.hart.pc, self.hart.x[A1] = image.load(path, self.memory, tree)

    def _lines(self) -> int:
        """What the devices hold up, as bits of mip."""
        return self._clint.lines() | self._plic.lines()

    def _time(self) -> int:
        return self._clint.mtime()

    def _line_changed(self) -> None:
        """The PLIC has news: at once when the hart caused it, else at its next slice."""
        if threading.get_ident() == self._executes:
            self.hart.attend()
        else:
            self._wake.set()

    # --- life --------------------------------------------------------------------------------------------------------
    def _begin(self) -> None:
        self._thread.start()

    def _halt(self) -> None:
        self._wake.set()
        self._thread.join()

    def send(self, data: bytes) -> None:
        """Bytes for the guest's serial port. Thread-safe. See `pending_input` for how many it has not read yet."""
        self.serial.receive(data)

    @property
    def pending_input(self) -> int:
        """Bytes sent to the serial port that the guest has not read yet."""
        return self.serial.pending_input

    @property
    def exits(self) -> dict[str, int]:
        """What happened in the run, by name: the counts of `figures`."""
        figures = self.figures
        names = ("instructions", "traps", "blocks", "decoded", "invalidated", "flushed", "walks")
        counted = {name: getattr(figures, name) for name in names} | self.hart.figures
        return {name: value for name, value in counted.items() if value}

    def kernel_stats(self) -> dict[str, int]:
        """Of the host's kernel: it knows nothing of this machine."""
        return {}

    @property
    def figures(self) -> Figures:
        """Instructions and what they cost; the times when the run is over."""
        hart, code = self.hart, self.hart.code
        retired = hart.retired
        mips = retired / self._cpu_seconds / 1e6 if self._cpu_seconds else 0.0
        return Figures(
            retired,
            self._cpu_seconds,
            mips,
            hart.traps,
            code.made,
            code.decoded,
            code.invalidated,
            code.flushed,
            hart.mmu.walks,
        )

    @property
    def registers(self) -> dict[str, int]:
        """pc, the registers by their ABI names, and the CSRs that say how it got there."""
        hart, csrs = self.hart, self.hart.csrs
        names = ("mstatus", "mepc", "mcause", "mtval", "mtvec", "sepc", "scause", "stval", "stvec")
        return {
            "pc": hart.pc,
            **dict(zip(ABI_NAMES, hart.x, strict=False)),
            "mode": hart.mode,
            **{name: getattr(csrs, name) for name in names},
            "satp": hart.mmu.satp,
        }

    def _registers(self) -> dict[str, int]:
        return self.registers

    def _run(self) -> None:
        """The thread's body."""
        started = time.thread_time()
        try:
            self._to_the_end(self._execute)
        finally:
            self._cpu_seconds = time.thread_time() - started

    def _execute(self) -> None:
        self.execute_here()
        hart, ended = self.hart, self._ended.is_set
        while not ended():
            if hart.look_at_interrupts():
                hart.execute(hart.slice)
            else:
                self.idle(IDLE_LOOK)

    def execute_here(self) -> None:
        """The calling thread executes the hart from now on: this machine's own, or that of one who drives it."""
        self._executes = threading.get_ident()

    def idle(self, longest: float) -> None:
        """The hart is in wfi: until the timer, or until a device wakes it, or `longest` seconds. Raises EndOfRun when
        nothing can."""
        enabled = self.hart.csrs.mie
        if not enabled:
            raise EndOfRun(Outcome.HALTED, "the hart is in wfi with no interrupt enabled")
        pause = longest
        if enabled & clint.TIMER:
            pause = min(self._clint.seconds_until_timer(), pause)
        if pause > 0:
            self._wake.wait(pause)
        self._wake.clear()
