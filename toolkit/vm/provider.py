"""What a machine is made of, what it may be doing, and what every provider of machines can do."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from minivmm.errors import ConfigError

if TYPE_CHECKING:
    from toolkit.vm.directory import MachineDirectory

SCHEMA = 1
MAX_CPUS = 255  # q35 without an interrupt remapping unit
MIB = 1 << 20


class State(Enum):
    """What a machine is doing."""

    STOPPED = "stopped"
    STARTING = "starting"  # its process is there and not yet set up
    RUNNING = "running"
    PAUSED = "paused"
    PANICKED = "panicked"  # the guest's kernel said so (pvpanic); the machine stands still
    CRASHED = "crashed"  # its process was killed or died, or the host went down under it
    SILENT = "silent"  # its process is there and does not answer
    DAMAGED = "damaged"  # its directory cannot be read

    @property
    def is_up(self) -> bool:
        """Whether the machine has a process."""
        return self in (State.STARTING, State.RUNNING, State.PAUSED, State.PANICKED, State.SILENT)


@dataclass(frozen=True, slots=True)
class Status:
    """A machine's state, its process where it has one, and in words what the state alone does not say."""

    state: State
    pid: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A moment of a machine that can be gone back to."""

    name: str
    created: str  # ISO 8601, UTC
    memory: bool  # whether it has the memory and the CPUs as well as the disk: taken of a machine that was up
    size: int  # bytes of memory and CPU state on the disk


@dataclass(frozen=True, slots=True)
class Migration:
    """How a machine moved."""

    duration: float  # seconds in all
    downtime: float  # seconds in which it stood still
    transferred: int  # bytes of memory and devices


@dataclass(frozen=True, slots=True)
class Figures:
    """What a machine has used since it was started: counters that only grow, sizes that are as they are now.

    None where the provider, or the guest, does not tell.
    """

    cpu_time: float | None = None  # seconds of host CPU
    memory: int | None = None  # bytes of RAM it was given
    balloon: int | None = None  # bytes of that which its balloon leaves it
    available: int | None = None  # bytes that the guest could give to a new program without swapping
    resident: int | None = None  # bytes of the host's memory
    disk_read: int | None = None  # bytes
    disk_written: int | None = None
    disk_reads: int | None = None  # requests
    disk_writes: int | None = None
    net_received: int | None = None  # bytes, by the guest
    net_sent: int | None = None
    exits: int | None = None  # from guest code to the hypervisor


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """config.json: all that is decided when a machine is made. Paths are absolute."""

    name: str
    created: str  # ISO 8601, UTC
    provider: str = "qemu"  # a key of machine.PROVIDERS
    uri: str = ""  # libvirt's: where the machine is
    imported: bool = False  # whether it was there before vtk knew it: `delete` forgets it only
    image: str = ""  # name in the image store
    kernel: str = ""
    initrd: str = ""
    append: str = ""
    disk: str = ""  # the image the machine's overlay is backed by
    memory: int = 512 * MIB  # bytes
    cpus: int = 1
    accelerator: str = "auto"  # auto | kvm | tcg
    mac: str = ""
    ssh_port: int = 0  # of 127.0.0.1, forwarded to the guest's port 22
    user: str = "root"  # who ssh logs in as
    seed: bool = False  # whether seed.iso, cloud-init's, is attached
    schema: int = SCHEMA

    def check(self) -> None:
        """Raises ConfigError for a machine QEMU would refuse less clearly."""
        if self.memory < MIB or self.memory % MIB:
            raise ConfigError(
                f"a machine cannot have {self.memory} bytes of memory",
                cause="it must be whole MiB, at least 1",
                remedy="--mem 512M",
            )
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(
                f"a machine cannot have {self.cpus} CPUs", cause=f"q35 has from 1 to {MAX_CPUS}", remedy="--cpus 1"
            )

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return asdict(self)


class Provider(Protocol):
    """A hypervisor with machines in it. Methods but `status` raise HostError, MonitorSilent where it does not answer,
    and Unsupported for what it cannot do; the caller holds the machine's lock and has looked at its state."""

    def define(self, machine: MachineDirectory) -> None:
        """The machine's files have just been made: whatever else it takes to have it."""

    def undefine(self, machine: MachineDirectory) -> None:
        """The machine's files are about to be removed; it is not up."""

    def status(self, machine: MachineDirectory) -> Status:
        """What it is doing. Never raises, changes nothing."""

    def start(self, machine: MachineDirectory, *, paused: bool = False) -> list[str]:
        """Starts it, `paused` before its first instruction; it lives on when this process ends. Returns what
        the person should know, a sentence each."""

    def press_power_button(self, machine: MachineDirectory) -> None:
        """Asks the guest to shut down."""

    def kill(self, machine: MachineDirectory) -> None:
        """Ends it now, whatever the guest does. Returns when it is gone."""

    def pause(self, machine: MachineDirectory) -> None:
        """Its CPUs stand still."""

    def resume(self, machine: MachineDirectory) -> None:
        """Its CPUs go on."""

    def console(self, machine: MachineDirectory) -> socket.socket:
        """A connection to its serial console. One at a time."""

    def ssh_address(self, machine: MachineDirectory) -> tuple[str, int]:
        """Host and port at which the guest's ssh server answers, seen from here."""

    def snapshot(self, machine: MachineDirectory, name: str) -> None:
        """Keeps its disk and, when it is up, its memory and CPUs as they are now; it goes on as before."""

    def restore(self, machine: MachineDirectory, name: str) -> None:
        """Goes back to a snapshot; to one with memory: the machine is up afterwards as it was then."""

    def snapshots(self, machine: MachineDirectory) -> list[Snapshot]:
        """In the order they were made."""

    def delete_snapshot(self, machine: MachineDirectory, name: str) -> None:
        """What only it holds is gone."""

    def balloon(self, machine: MachineDirectory, size: int) -> None:
        """Asks the guest to make do with `size` bytes of memory."""

    def migrate(self, machine: MachineDirectory, destination: str) -> Migration:
        """Moves the running machine to another process on this host, or to `destination`, where one is named."""

    def figures(self, machine: MachineDirectory) -> Figures:
        """What it has used. Costs no more than `status`."""


@runtime_checkable
class AgentProvider(Protocol):
    """A provider that reaches the QEMU guest agent in its machines."""

    def ask_agent(self, machine: MachineDirectory, questions: list[tuple[str, dict[str, Any]]]) -> list[Any]:
        """The agent's answers, None to a command it refuses. Raises AgentSilent, MachineBusy, MonitorSilent."""


@runtime_checkable
class ProgressProvider(Protocol):
    """A provider that tells how far a machine's migration is."""

    def migration_progress(self, machine: MachineDirectory) -> tuple[int, int]:
        """Bytes transferred, and bytes that remain. Raises HostError."""
