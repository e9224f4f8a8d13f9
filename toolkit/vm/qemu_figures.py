"""What a QEMU machine has used: from QMP, from /proc of its process, and from its guest's agent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.vm import agent, presence
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import AgentSilent, MachineBusy
from toolkit.vm.monitor import Conversation, conversation
from toolkit.vm.provider import Figures
from toolkit.vm.q35 import BALLOON

AGENT_TIMEOUT = 1.0  # seconds
UNKNOWN = (1 << 64) - 1  # a statistic that the guest does not give (virtio 1.2, 5.5.6.3)
EXITS = {"target": "vcpu", "providers": [{"provider": "kvm", "names": ["exits"]}]}


class Disk(NamedTuple):
    """query-blockstats, all disks together."""

    read: int
    written: int
    reads: int
    writes: int


def figures(machine: MachineDirectory) -> Figures:
    """Nothing known of a machine that is not up. Raises MonitorSilent."""
    pid = presence.process_id(machine)
    if pid is None:
        return Figures()
    cpu_time, resident = _process(pid)
    with conversation(machine) as monitor:
        disk = _disk(monitor)
        balloon = monitor.ask("query-balloon") or {}
        memory = monitor.ask("query-memory-size-summary") or {}
        running = (monitor.ask("query-status") or {}).get("running", False)
        available = _available(monitor)
        exits = _exits(monitor)
        talks = running and agent_is_there(monitor)
    received, sent = _network(machine) if talks else (None, None)
    return Figures(
        cpu_time=cpu_time,
        memory=memory.get("base-memory"),
        balloon=balloon.get("actual"),
        available=available,
        resident=resident,
        disk_read=disk.read,
        disk_written=disk.written,
        disk_reads=disk.reads,
        disk_writes=disk.writes,
        net_received=received,
        net_sent=sent,
        exits=exits,
    )


def agent_is_there(monitor: Conversation) -> bool:
    """Whether a program in the guest has opened the agent's port."""
    ports = monitor.ask("query-chardev") or []
    return any(port["label"] == "agent" and port["frontend-open"] for port in ports)


def _process(pid: int) -> tuple[float | None, int | None]:
    """Seconds of CPU and bytes of memory (proc(5), stat and statm); None when it has just ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None, None
    ticks = int(fields[11]) + int(fields[12])  # utime and stime: the 14th and 15th, after pid and name
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def _disk(monitor: Conversation) -> Disk:
    told = [entry["stats"] for entry in monitor.ask("query-blockstats") or []]
    names = ("rd_bytes", "wr_bytes", "rd_operations", "wr_operations")
    return Disk(*(sum(stats[name] for stats in told) for name in names))


def _available(monitor: Conversation) -> int | None:
    where = {"path": f"/machine/peripheral/{BALLOON}", "property": "guest-stats"}
    told: dict[str, Any] = monitor.ask("qom-get", where) or {}
    stats = told.get("stats", {})
    for name in ("stat-available-memory", "stat-free-memory"):
        value = stats.get(name, UNKNOWN)
        if told.get("last-update") and 0 <= value < UNKNOWN:
            return int(value)
    return None


def _exits(monitor: Conversation) -> int | None:
    """All CPUs together; only KVM counts them."""
    told = monitor.ask("query-stats", EXITS) or []
    counts = [stat["value"] for cpu in told for stat in cpu["stats"] if stat["name"] == "exits"]
    return sum(counts) if counts else None


def _network(machine: MachineDirectory) -> tuple[int | None, int | None]:
    """As the guest counts: QEMU's user network has no counters."""
    with contextlib.suppress(AgentSilent, MachineBusy):
        return agent.network_bytes(agent.ask(machine, agent.NETWORK, AGENT_TIMEOUT))
    return None, None
