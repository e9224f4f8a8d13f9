"""Every QMP command there is, in one table: its name, its arguments, and what it does.

Names, arguments and results are QEMU's (QAPI schema, "QEMU QMP Reference Manual"), so a client of QEMU's needs no other
code. A command raises QmpError, or VtkError, which becomes a GenericError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from minivmm.control.controlled import Controlled, RunState
from minivmm.control.messages import DEVICE_NOT_ACTIVE, QmpError
from minivmm.errors import ConfigError

PACKAGE = "minivmm"
VERSION = {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": PACKAGE}
"""VersionInfo, whose member for any server's version is called so."""

TYPES = {str: "string", int: "integer", bool: "boolean", list: "array", dict: "object"}
"""Python's types of arguments, and what QEMU's messages call them."""


class Argument(NamedTuple):
    """What an argument must be."""

    kind: type
    optional: bool = False


class Command(NamedTuple):
    """One entry of COMMANDS."""

    run: Callable[[Controlled, Mapping[str, Any]], Any]
    arguments: Mapping[str, Argument]


COMMANDS: dict[str, Command] = {}


def command(
    name: str, **arguments: Argument
) -> Callable[[Callable[[Controlled, Mapping[str, Any]], Any]], Callable[[Controlled, Mapping[str, Any]], Any]]:
    """Enters the function into COMMANDS."""

    def enter(run: Callable[[Controlled, Mapping[str, Any]], Any]) -> Callable[[Controlled, Mapping[str, Any]], Any]:
        COMMANDS[name] = Command(run, arguments)
        return run

    return enter


def check(content: Mapping[str, Any], declared: Mapping[str, Argument], where: str = "") -> None:
    """Raises QmpError for a member that is missing, unexpected or of another type. `where`: what it is in."""
    for name, argument in declared.items():
        if name not in content:
            if not argument.optional:
                raise QmpError(f"Parameter '{where}{name}' is missing")
        elif type(content[name]) is not argument.kind:  # no subclasses: bool is not an integer
            raise QmpError(f"Invalid parameter type for '{where}{name}', expected: {TYPES[argument.kind]}")
    for name in content:
        if name not in declared:
            raise QmpError(f"Parameter '{where}{name}' is unexpected")


# --- what it is ------------------------------------------------------------------------------------------------------
@command("query-version")
def query_version(_machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """VersionInfo."""
    return VERSION


@command("query-commands")
def query_commands(_machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """[CommandInfo]."""
    return [{"name": name} for name in ("qmp_capabilities", *COMMANDS)]


@command("query-name")
def query_name(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """NameInfo."""
    return {"name": machine.name}


@command("query-kvm")
def query_kvm(_machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """KvmInfo: nothing else runs a machine here."""
    return {"enabled": True, "present": True}


@command("query-target")
def query_target(_machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """TargetInfo."""
    return {"arch": "x86_64"}


@command("query-cpus-fast")
def query_cpus_fast(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """[CpuInfoFast]."""
    return [
        {
            "cpu-index": index,
            "qom-path": _qom_path(index),
            "thread-id": thread,
            "target": "x86_64",
            "props": {"core-id": index},
        }
        for index, thread in enumerate(machine.vcpu_threads())
    ]


def _qom_path(index: int) -> str:
    return f"/machine/unattached/cpu[{index}]"


# --- what it does ----------------------------------------------------------------------------------------------------
@command("query-status")
def query_status(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """StatusInfo."""
    state = machine.state
    return {"running": state is RunState.RUNNING, "status": state.value}


@command("stop")
def stop(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """Its vCPUs stand still when the answer is there."""
    machine.pause()
    return {}


@command("cont")
def cont(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """They go on."""
    machine.resume()
    return {}


@command("system_powerdown")
def system_powerdown(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """Asks the guest to shut down. Unlike QEMU's, it fails where no guest can hear it."""
    machine.press_power_button()
    return {}


@command("system_reset")
def system_reset(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """Its kernel is loaded anew."""
    machine.reset()
    return {}


@command("balloon", value=Argument(int))
def balloon(machine: Controlled, arguments: Mapping[str, Any]) -> Any:
    """The guest is asked; it may take its time."""
    if arguments["value"] <= 0:
        raise QmpError("Parameter 'value' expects a size")
    try:
        machine.balloon(arguments["value"])
    except ConfigError as error:
        raise QmpError("No balloon device has been activated", DEVICE_NOT_ACTIVE) from error
    return {}


@command("query-balloon")
def query_balloon(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """BalloonInfo."""
    try:
        return {"actual": machine.balloon_size()}
    except ConfigError as error:
        raise QmpError("No balloon device has been activated", DEVICE_NOT_ACTIVE) from error


@command("quit")
def quit_machine(machine: Controlled, _arguments: Mapping[str, Any]) -> Any:
    """The end."""
    machine.quit("host-qmp-quit", "ended by QMP's quit")
    return {}


# --- statistics ------------------------------------------------------------------------------------------------------
@command(
    "query-stats",
    target=Argument(str),
    vcpus=Argument(list, optional=True),
    providers=Argument(list, optional=True),
)
def query_stats(machine: Controlled, arguments: Mapping[str, Any]) -> Any:
    """[StatsResult]: KVM's counters of each vCPU, since its last reset. There are none of the machine as a whole."""
    names = _names(arguments.get("providers"))
    if arguments["target"] not in ("vcpu", "vm"):
        raise QmpError("Parameter 'target' does not accept value " + repr(arguments["target"][:40]))
    if arguments["target"] == "vm" or names == set():
        return []
    vcpus = arguments.get("vcpus")
    return [
        {
            "provider": "kvm",
            "qom-path": _qom_path(index),
            "stats": [
                {"name": name, "value": value} for name, value in counters.items() if names is None or name in names
            ],
        }
        for index, counters in enumerate(machine.vcpu_stats())
        if vcpus is None or _qom_path(index) in vcpus
    ]


def _names(providers: list[Any] | None) -> set[str] | None:
    """The counters asked for; None for all. Raises QmpError for what is no [StatsRequest]."""
    if providers is None:
        return None
    asked: set[str] = set()
    for request in providers:
        if not isinstance(request, dict):
            raise QmpError("Invalid parameter type for 'providers', expected: object")
        check(request, {"provider": Argument(str), "names": Argument(list, optional=True)}, "providers.")
        if request["provider"] != "kvm":
            continue
        if "names" not in request:
            return None
        asked |= {name for name in request["names"] if isinstance(name, str)}
    return asked


@command("query-stats-schemas", provider=Argument(str, optional=True))
def query_stats_schemas(machine: Controlled, arguments: Mapping[str, Any]) -> Any:
    """[StatsSchema]."""
    counters = machine.vcpu_stats()[:1]
    if not counters or arguments.get("provider", "kvm") != "kvm":
        return []
    stats = [{"name": name, "type": "cumulative"} for name in counters[0]]
    return [{"provider": "kvm", "target": "vcpu", "stats": stats}]
