"""The guest agent in a domain, through libvirt, which holds the only connection to it (virDomainQemuAgentCommand)."""

from __future__ import annotations

import json
from typing import Any

from toolkit.libvirt.connection import Domain, library
from toolkit.libvirt.errors import LibvirtRefused
from toolkit.libvirt.provider import with_domain
from toolkit.vm.directory import MachineDirectory
from toolkit.vm.errors import AgentSilent

TIMEOUT = 3  # seconds for one answer; libvirt takes whole ones
LATEST = 30.0  # seconds for all of them

Questions = list[tuple[str, dict[str, Any]]]  # a command of the agent's and its arguments, each


def ask_agent(machine: MachineDirectory, questions: Questions) -> list[Any]:
    """The answers, None to a command that the agent refuses. Raises AgentSilent, and what `ask` raises."""

    def put(domain: Domain) -> list[Any]:
        return [_execute(domain, command, arguments) for command, arguments in questions]

    try:
        return with_domain(machine, put, timeout=LATEST)
    except LibvirtRefused as error:
        raise AgentSilent(
            f"the guest agent of machine {machine.name!r} does not answer",
            cause=error.cause,
            remedy=f"see that qemu-guest-agent is installed and running in it, and vtk vm show {machine.name}",
        ) from error


def _execute(domain: Domain, command: str, arguments: dict[str, Any]) -> Any:
    import libvirt_qemu

    libvirt = library()
    line = json.dumps({"execute": command, "arguments": arguments})
    try:
        return json.loads(libvirt_qemu.qemuAgentCommand(domain, line, TIMEOUT, 0))["return"]
    except libvirt.libvirtError as error:
        silent = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_OPERATION_INVALID)
        if error.get_error_code() in (*silent, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
            raise
        return None
    except (ValueError, KeyError, TypeError):  # the guest is not trusted
        return None
