"""Snapshots of a QEMU machine: inside a qcow2, the disk's own or, for a machine without one, state.qcow2.

What there is, the qcow2 says; snapshots.json adds what a machine must be like for the memory of one to fit. It is
written first: a crash leaves a line about a snapshot that is not there, which nobody reads. qcow2 itself writes a
snapshot's data before the table that names it, so that QEMU killed meanwhile costs no more than leaked clusters.

The disk is not frozen through the guest agent: a snapshot of a machine that is up has its page cache too, and would
have the frozen file systems.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from minivmm.errors import ConfigError
from toolkit.images.errors import ImageBuildFailed
from toolkit.qemu.errors import QemuError
from toolkit.qemu.microvm import Accelerator
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import StateError, Unsupported, WrongState
from toolkit.vm.launch import KILL_TIMEOUT, Shape, choose_accelerator, launch, shape_of
from toolkit.vm.monitor import Conversation, conversation
from toolkit.vm.provider import MIB, MachineConfig, Snapshot
from toolkit.vm.q35 import DISK, Launch

RECORDS = "snapshots.json"
STATE_DISK = "state.qcow2"
STATE_NODE = "state0"
JOB_TIMEOUT = 900.0  # seconds for one save or load: all of a machine's memory, on a slow disk
JOB_PERIOD = 0.02  # seconds between looks at a job


def container(machine: MachineDirectory, config: MachineConfig) -> Path:
    """The qcow2 that the machine's snapshots are in. It may not be there yet."""
    return machine / ("disk.qcow2" if config.disk else STATE_DISK)


def found(machine: MachineDirectory, config: MachineConfig) -> list[Snapshot]:
    """In the order they were made. Raises StateError, ToolMissing."""
    from toolkit.images.overlay import info

    path = container(machine, config)
    if not path.exists():
        return []
    try:
        entries = info(path).get("snapshots", [])
    except ImageBuildFailed as error:
        raise StateError(f"{path} cannot be read", cause=error.cause or error.message) from error
    return [
        Snapshot(
            name=entry["name"],
            created=datetime.fromtimestamp(entry["date-sec"], UTC).isoformat(timespec="seconds"),
            memory=entry["vm-state-size"] > 0,
            size=entry["vm-state-size"],
        )
        for entry in sorted(entries, key=lambda entry: int(entry["id"]))
    ]


def keep(machine: MachineDirectory, config: MachineConfig, name: str) -> None:
    """Raises ConfigError, Unsupported, QemuError, StateError; there is no such snapshot then."""
    if name.isdigit():
        raise ConfigError(
            f"{name!r} cannot be a snapshot's name",
            cause="QEMU takes a number for the place of a snapshot in its list",
            remedy=f"s{name}",
        )
    if not presence.is_alive(machine):
        if not config.disk:
            raise Unsupported(
                f"machine {machine.name!r} has nothing to keep",
                cause="it has no disk, and is not up",
                remedy=f"vtk vm start {machine.name}",
            )
        _by_qemu_img(container(machine, config), "-c", name)
        return
    with conversation(machine) as monitor, _node(machine, config, monitor) as node:
        running = monitor.execute("query-status")["running"]
        kept = {snapshot.name for snapshot in found(machine, config)}
        records = {known: record for known, record in _records(machine).items() if known in kept}
        records[name] = {"shape": asdict(shape_of(monitor, config)), "running": running}
        machine.write(RECORDS, json.dumps(records, indent=2).encode() + b"\n")
        _run_job(machine, monitor, "snapshot-save", {"tag": name, "vmstate": node, "devices": [node]})


def delete(machine: MachineDirectory, config: MachineConfig, name: str) -> None:
    """Raises QemuError, StateError."""
    if not presence.is_alive(machine):
        _by_qemu_img(container(machine, config), "-d", name)
        return
    with conversation(machine) as monitor, _node(machine, config, monitor) as node:
        _run_job(machine, monitor, "snapshot-delete", {"tag": name, "devices": [node]})


def restore(machine: MachineDirectory, config: MachineConfig, name: str) -> None:
    """Raises ConfigError for one that does not fit, WrongState, QemuError, StateError, ImageError."""
    (snapshot,) = (one for one in found(machine, config) if one.name == name)
    shape, running = _record(machine, name)
    if not presence.is_alive(machine):
        if not snapshot.memory:
            _by_qemu_img(container(machine, config), "-a", name)
            return
        _start_into(machine, config, name, shape)
        try:
            _load(machine, config, name, running, shape)
        except BaseException:
            # It was not up before, and what would be up now is neither one nor the other.
            presence.kill(machine, KILL_TIMEOUT)
            presence.forget(machine)
            raise
        return
    if not snapshot.memory:
        raise WrongState(
            f"machine {machine.name!r} is up, and snapshot {name!r} has its disk only",
            cause="what is in its memory would not fit that disk",
            remedy=f"vtk vm kill {machine.name}, then vtk vm restore {machine.name} {name}",
        )
    _load(machine, config, name, running, shape)


def _load(machine: MachineDirectory, config: MachineConfig, name: str, running: bool, shape: Shape | None) -> None:
    with conversation(machine) as monitor, _node(machine, config, monitor) as node:
        if shape is not None:
            remedy = f"vtk vm kill {machine.name}, then vtk vm restore {machine.name} {name}"
            _check_fit(machine, name, shape, shape_of(monitor, config), remedy)
        monitor.execute("stop")
        _run_job(machine, monitor, "snapshot-load", {"tag": name, "vmstate": node, "devices": [node]})
        if running:
            monitor.execute("cont")


def _start_into(machine: MachineDirectory, config: MachineConfig, name: str, shape: Shape | None) -> None:
    """Starts the machine, still, such that the snapshot's memory fits in it."""
    if shape is None:
        how = Launch(choose_accelerator(config.accelerator)[0], paused=True)
    else:
        now = replace(shape, memory=config.memory, cpus=config.cpus, disk=bool(config.disk), seed=config.seed)
        _check_fit(machine, name, shape, now, f"set it back in {machine / 'config.json'}")
        how = Launch(Accelerator(shape.accelerator), paused=True, type=shape.type)
    launch(machine, config, how)


def _check_fit(machine: MachineDirectory, name: str, then: Shape, now: Shape, remedy: str) -> None:
    if differences := then.differences(now):
        raise ConfigError(
            f"snapshot {name!r} does not fit machine {machine.name!r} any more",
            cause="; ".join(differences),
            remedy=remedy,
        )


@contextlib.contextmanager
def _node(machine: MachineDirectory, config: MachineConfig, monitor: Conversation) -> Iterator[str]:
    """The block node that the snapshots are in; that of a machine without a disk is there only meanwhile."""
    if config.disk:
        yield DISK
        return
    path = container(machine, config)
    if not path.exists():
        from toolkit.images.overlay import empty

        part = path.with_suffix(".part")
        empty(part, MIB)
        part.replace(path)
    monitor.ask("blockdev-del", {"node-name": STATE_NODE})  # a vtk was killed here before
    file = {"driver": "file", "filename": str(path)}
    monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": STATE_NODE, "file": file})
    try:
        yield STATE_NODE
    finally:
        monitor.ask("blockdev-del", {"node-name": STATE_NODE})


def _run_job(machine: MachineDirectory, monitor: Conversation, command: str, arguments: dict[str, Any]) -> None:
    """Runs a job of QEMU's to its end. Raises QemuError with its words, MonitorSilent."""
    job = f"vtk-{secrets.token_hex(4)}"
    monitor.execute(command, {"job-id": job, **arguments})
    deadline = time.monotonic() + JOB_TIMEOUT
    while True:
        # QEMU hears nothing while it saves or loads, so the answer takes as long as that.
        (found,) = (one for one in monitor.execute("query-jobs", timeout=JOB_TIMEOUT) if one["id"] == job)
        if found["status"] == "concluded":
            break
        if time.monotonic() >= deadline:
            raise QemuError(f"{command} on machine {machine.name!r} has not ended within {JOB_TIMEOUT:g} s")
        time.sleep(JOB_PERIOD)
    monitor.ask("job-dismiss", {"id": job})
    if "error" in found:
        raise QemuError(
            f"QEMU fails in {command} on machine {machine.name!r}",
            found["error"],
            remedy=f"see to the free space of {machine.path}, and vtk vm show {machine.name}",
        )


def _by_qemu_img(path: Path, action: Literal["-c", "-a", "-d"], name: str) -> None:
    from toolkit.images.overlay import snapshot

    try:
        snapshot(path, action, name)
    except ImageBuildFailed as error:
        raise StateError(f"{path} cannot be changed", cause=error.cause or error.message) from error


def _record(machine: MachineDirectory, name: str) -> tuple[Shape | None, bool]:
    """What the machine was like, where that is known, and whether it ran."""
    try:
        record = _records(machine)[name]
        return Shape(**record["shape"]), bool(record["running"])
    except (KeyError, TypeError):
        return None, True


def _records(machine: MachineDirectory) -> dict[str, Any]:
    """What is known of snapshots; nothing, where the file is not there or not ours."""
    try:
        content = json.loads((machine / RECORDS).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
