"""The guest's host key, pinned in the machine's known_hosts: from the seed, or the one shown at first.

The file is OpenSSH's too (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). Its key stands under the alias vtk-NAME and not under
an address: the port is another one when the old was taken, and then belongs to another machine.
"""

from __future__ import annotations

from typing import NamedTuple

from toolkit.vm.errors import StateError, Unreachable
from toolkit.vm.machine import Machine
from toolkit.vm.ssh_settings import alias


class HostKey(NamedTuple):
    """A public key as known_hosts has it."""

    kind: str  # "ssh-ed25519"
    base64: str


def pinned(machine: Machine) -> list[HostKey]:
    """The keys the guest may show; none before the first contact. Raises StateError."""
    file = machine.directory / "known_hosts"
    try:
        lines = file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StateError(f"{file} cannot be read", cause=error.strerror or str(error)) from error
    words = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [HostKey(found[1], found[2]) for found in words if len(found) >= 3]


def pin(machine: Machine, key: HostKey) -> None:
    """Keeps the key of a first contact. Raises StateError, MachineBusy."""
    machine.directory.write("known_hosts", f"{alias(machine.name)} {key.kind} {key.base64}\n".encode())


def check(machine: Machine, shown: HostKey) -> None:
    """Raises Unreachable when it is not the one the guest showed at first; StateError, MachineBusy."""
    known = pinned(machine)
    if not known:
        with machine.directory.locked(f"ssh {machine.name}"):  # two first contacts at once: one of them pins
            known = pinned(machine)
            if not known:
                pin(machine, shown)
                return
    if shown not in known:
        raise Unreachable(
            f"machine {machine.name!r} shows another host key than at first",
            cause="its guest was installed anew, or another program answers on its port",
            remedy=f"rm '{machine.directory / 'known_hosts'}'  (when you know why)",
        )


def file_under_alias(machine: Machine) -> None:
    """Rewrites a known_hosts that names an address, as earlier versions did, so that ssh(1) finds the key."""
    known = pinned(machine)
    file = machine.directory / "known_hosts"
    if known and not any(line.startswith(alias(machine.name) + " ") for line in file.read_text().splitlines()):
        with machine.directory.locked(f"ssh-config {machine.name}"):
            lines = [f"{alias(machine.name)} {key.kind} {key.base64}\n" for key in known]
            machine.directory.write("known_hosts", "".join(lines).encode())
