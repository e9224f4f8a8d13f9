"""A paravirtual domain as a machine: a hypervisor with nothing else on it, and the verbs of minivmm.Machine."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivmm.boot import xen_image
from minivmm.boot.elf import read_image
from minivmm.deprivileged.monitor import CPU_PAGES
from minivmm.errors import ConfigError, HostError
from minivmm.memory import PAGE_SIZE
from minivmm.outcome import RunResult
from minivmm.xen.hypervisor import Hypervisor
from minivmm.xen.store import get_domain_path
from minivmm.xen.store_tree import StoreError

SPARE = 4 << 20  # bytes: grant tables, shared pages, and room to round up
ROUND = 2 << 20
PAUSE_LIMIT = 3.0  # seconds until a vCPU has left the guest; some microseconds as a rule


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
            self._cpus = list(reversed(self.hypervisor.free_cpus))  # a domain is given the last one first
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

    @property
    def paused(self) -> bool:
        """Whether its vCPUs are kept off the CPUs."""
        return self.domain.paused

    def pause(self) -> None:
        """Its vCPUs stand still from when this returns until resume(); one that has not started will not begin. The
        deadline and the domain's clocks go on. Thread-safe. Raises HostError when one does not leave the guest."""
        self.hypervisor.pause(self.domain)
        deadline = time.monotonic() + PAUSE_LIMIT
        while any(vcpu.inside for vcpu in self.domain.vcpus):
            if time.monotonic() >= deadline:
                self.resume()
                raise HostError(f"a vCPU has not stood still within {PAUSE_LIMIT:g} s", remedy="try again")
            os.sched_yield()

    def resume(self) -> None:
        """A paused domain goes on. Thread-safe."""
        self.hypervisor.unpause(self.domain)

    def press_power_button(self) -> None:
        """Asks its kernel to power off, as Xen's tools do: by control/shutdown in the store. Thread-safe.

        Raises ConfigError when it has not said that it listens (feature-poweroff, docs/misc/xenstore-paths).
        """
        control = f"{get_domain_path(self.domain.domid)}/control"
        with self.hypervisor.core.lock:
            tools = self.hypervisor.core.store.tools
            try:
                listens = tools.read(f"{control}/feature-poweroff") == b"1"
            except StoreError:  # the node is the domain's to remove
                listens = False
            if not listens:
                raise ConfigError(
                    "the domain does not listen for requests to power off",
                    cause="its kernel has not written control/feature-poweroff: it is not up yet, or never will",
                    remedy="try again when it is up, or stop it",
                )
            tools.write(f"{control}/shutdown", b"poweroff")

    def balloon(self, size: int) -> None:
        """Asks its kernel to make do with `size` bytes, as Xen's tools do: by memory/target in the store. Thread-safe.

        When it does, and whether, is its own business; see `balloon_size`.
        """
        with self.hypervisor.core.lock:
            target = f"{get_domain_path(self.domain.domid)}/memory/target"
            self.hypervisor.core.store.tools.write(target, str(size // 1024).encode())

    def balloon_size(self) -> int:
        """Bytes of memory that it has now."""
        with self.hypervisor.core.lock:
            return self.hypervisor.core.memory_op.current_reservation(self.domain.domid) * PAGE_SIZE

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
        for counters in self.vcpu_stats():
            total.update(counters)
        return dict(total)

    def vcpu_stats(self) -> list[dict[str, int]]:
        """KVM's own counters of each vCPU."""
        return [cpu.vcpu.stats() for cpu in self._cpus]

    def vcpu_threads(self) -> list[int]:
        """The kernel's ids of the threads that run its vCPUs; 0 before they are started."""
        vcpus = [f"{self.domain.name}-vcpu{index}" for index in range(len(self._cpus))]
        started = {thread.name: thread.native_id or 0 for thread in self.domain.threads}
        return [started.get(name, 0) for name in vcpus]

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
