"""The tables of devices and clocksources: all of them in one machine, one measured at a time.

One boot serves every row. A machine that is lost is booted again for the next row (toolkit.compare.cell.Contestant).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from minivmm.errors import VtkError
from toolkit.compare.cell import Cell, Contestant, Settings
from toolkit.compare.linux.guest import LinuxGuest, room_for
from toolkit.compare.linux.hardware import CONSOLES, DISKS, NETWORKS, Device
from toolkit.compare.linux.identity import identify
from toolkit.compare.linux.machine import MEMORY, LinuxMachine, OpenMachine
from toolkit.compare.linux.results import row
from toolkit.compare.linux.works import BY_NAME, LinuxTable, Work
from toolkit.compare.results import Result, Status
from toolkit.compare.runner import take_turns
from toolkit.compare.session import Session
from toolkit.compare.techniques import Bench, Obstacle
from toolkit.qemu.microvm import Accelerator

DEVICES = {device.name: device for device in (*DISKS, *NETWORKS, *CONSOLES)}
DISK_SIZE = 32 << 20  # bytes; guest_os/linux/disk.c reads the first half and writes in the second
TYPE = "pc"  # the one machine type that has the PIIX's IDE controller


class DeviceMachine:
    """The machine as a Technique (toolkit.compare.techniques): what a Contestant opens, and opens again."""

    name = TYPE
    summary = "a pc with every device compared"

    def __init__(self, guest: LinuxGuest, accelerator: Accelerator, devices: tuple[Device, ...]) -> None:
        self._shape = LinuxMachine(guest, TYPE, accelerator, devices)
        self.facts: dict[str, dict[str, str]] = {}
        """What is known of each device, by its name."""
        self.problems: dict[str, str] = {}
        """What is wrong with a device, by its name."""

    def obstacle(self) -> Obstacle | None:
        """Looked for before there is any machine: accelerators.py."""
        return None

    def disk_files(self, beside: Path) -> dict[str, Path]:
        """The file behind each disk, by the disk's name."""
        disks = (device.name for device in self._shape.devices if device.kind == "disk")
        return {name: beside.with_name(f"disk-{name}") for name in disks}

    def open(self, bench: Bench) -> Session:
        """Boots it, and finds out what the guest really got."""
        machine = OpenMachine(self._shape, disk_files=self.disk_files(bench.disk), lifetime=bench.lifetime)
        try:
            for device in self._shape.devices:
                self.facts[device.name], problem = identify(device, machine.inventory, machine.machine)
                if problem:
                    self.problems[device.name] = problem
        except BaseException:
            machine.close()
            raise
        return machine


class DeviceTables:
    """Measures the tables `names`, of disk, net, console and clock."""

    def __init__(
        self,
        guest: LinuxGuest,
        accelerator: Accelerator,
        names: tuple[str, ...],
        directory: Path,
        settings: Settings,
        lifetime: float,
    ) -> None:
        self._tables = [BY_NAME[name] for name in names]
        self._accelerator = accelerator
        self._settings = settings
        used = {column for table in self._tables for column in table.columns}
        self._machine = DeviceMachine(
            guest, accelerator, tuple(device for name, device in DEVICES.items() if name in used)
        )
        self._bench = Bench(directory / "disk", MEMORY, lifetime)
        self._contestant = Contestant(self._machine, self._bench, settings.deadline)

    def run(self, rows: list[Result], tell: Callable[[str], None]) -> None:
        """Adds the rows as they are measured. Whatever ends it, the machine is closed. Raises NoRoom."""
        import guest_os

        tell("booting Linux")
        for file in self._machine.disk_files(self._bench.disk).values():
            with room_for(file):
                guest_os.write_disk(file, DISK_SIZE)
        try:
            for table in self._tables:
                for work in table.works:
                    self._measure(table, work, rows, tell)
        finally:
            self._contestant.close()

    def _measure(self, table: LinuxTable, work: Work, rows: list[Result], tell: Callable[[str], None]) -> None:
        cells = [
            Cell(
                self._contestant,
                f"{work.name}:{_suffix(column)}",
                self._settings,
                technique=column,
                label=work.name,
            )
            for column in table.columns
        ]
        try:
            self._boot(cells)
            take_turns(cells, self._settings.samples + 1, lambda cell: tell(f"{cell.label} on {cell.technique}"))
            for cell in cells:
                if problem := self._machine.problems.get(cell.technique):  # a machine booted again since
                    cell.fail(Status.FAILED, problem)
        finally:
            for cell in cells:
                if (result := cell.result()) is not None:
                    facts = self._machine.facts.get(cell.technique)
                    rows.append(row(_told(result, table), table.name, self._accelerator.value, facts))

    def _boot(self, cells: list[Cell]) -> None:
        """Has the machine running, and fails the cells of what it did not get."""
        try:
            self._contestant.session_for("cpu")
        except VtkError as error:
            reason = self._contestant.lose(error)
            for cell in cells:
                cell.fail(Status.FAILED, reason, error.remedy)
        for cell in cells:
            if problem := self._machine.problems.get(cell.technique):
                cell.fail(Status.FAILED, problem)


def _suffix(column: str) -> str:
    """The driver's or the clocksource's name, with which the bench program calls its workloads."""
    return DEVICES[column].driver if column in DEVICES else column


def _told(result: Result, table: LinuxTable) -> Result:
    """The result with a reason that says more than the bench program can."""
    if result.status is Status.UNSUPPORTED and table.name == "clock":
        return replace(result, reason="the guest's kernel does not offer this clocksource here")
    return result
