"""A paravirtual domain as a machine: a hypervisor with nothing else on it, and the verbs of minivmm.Machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivmm.boot import xen_image
from minivmm.boot.elf import read_image
from minivmm.deprivileged.monitor import CPU_PAGES
from minivmm.memory import PAGE_SIZE
from minivmm.outcome import RunResult
from minivmm.xen.hypervisor import Hypervisor

SPARE = 4 << 20  # bytes: grant tables, shared pages, and room to round up
ROUND = 2 << 20


class XenMachine:
    """A domain of `memory` bytes that boots `image`, an ELF kernel with Xen notes or a bzImage with one inside.

    initrd: a file for the kernel. console: gets what the domain says as it comes, on a vCPU's thread. audit, exitless:
    see Hypervisor. kernel_cache: a directory where the kernel of a bzImage is kept unpacked.

    Raises ImageError, ConfigError, HostError. Use it as a context manager, or call close().
    """

    def __init__(
        self,
        image: str | Path,
        *,
        memory: int = 64 << 20,
        cpus: int = 1,
        cmdline: str = "",
        initrd: str | Path | None = None,
        console: Callable[[bytes], None] | None = None,
        audit: int = 0,
        exitless: bool | None = None,
        kernel_cache: Path | None = None,
    ) -> None:
        kernel = xen_image.read(image, kernel_cache)
        ramdisk = read_image(Path(initrd)) if initrd is not None else b""
        self.hypervisor = Hypervisor(machine_size(memory, cpus), cpus=cpus, audit=audit, exitless=exitless)
        try:
            self._cpus = list(self.hypervisor.free_cpus)
            self.domain = self.hypervisor.create_domain(
                kernel,
                memory,
                vcpus=cpus,
                cmdline=cmdline.encode(),
                initrd=ramdisk,
                name=Path(image).stem,
                console=console,
            )
        except BaseException:
            self.hypervisor.close()
            raise

    def start(self, timeout: float = 60.0) -> None:
        """Lets it run, for at most `timeout` seconds."""
        self.hypervisor.start(self.domain, timeout)

    def wait(self) -> RunResult:
        """Waits for its end."""
        return self.hypervisor.wait(self.domain)

    def run(self, timeout: float = 60.0) -> RunResult:
        """start() and wait(); Ctrl-C ends it as `interrupted`."""
        return self.hypervisor.run(self.domain, timeout)

    def stop(self, detail: str = "stopped by the caller") -> None:
        """Ends it from outside. Thread-safe."""
        self.hypervisor.stop(self.domain, detail)

    def send(self, data: bytes) -> None:
        """Types on its console. Thread-safe. See `pending_input` for how much it has no room for yet."""
        self.hypervisor.send(self.domain, data)

    @property
    def pending_input(self) -> int:
        """Bytes typed on its console for which the ring has had no room yet."""
        return self.domain.console_ring.waiting

    @property
    def exits(self) -> dict[str, int]:
        """Hypercalls by name, and what else took it out of ring 3."""
        return self.domain.statistics()

    def kernel_stats(self) -> dict[str, int]:
        """KVM's own counters over all vCPUs; empty where it has none."""
        total: Counter[str] = Counter()
        for cpu in self._cpus:
            total.update(cpu.vcpu.stats())
        return dict(total)

    def close(self) -> None:
        """Gives everything back to the host."""
        self.hypervisor.close()

    def __enter__(self) -> XenMachine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def machine_size(memory: int, cpus: int) -> int:
    """Bytes of machine memory for a domain of `memory` bytes: its frames' bookkeeping in the machine comes on top."""
    bookkeeping = memory // PAGE_SIZE * 8 * 2  # the machine-to-physical table and what maps it
    monitor = (cpus + 1) * CPU_PAGES * PAGE_SIZE
    return -(-(memory + bookkeeping + monitor + SPARE) // ROUND) * ROUND
