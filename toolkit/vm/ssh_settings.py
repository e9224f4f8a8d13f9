"""What ssh(1)'s world says about a machine, and what vtk tells ssh(1): both under the name vtk-NAME.

Read: the `Host` blocks of ~/.ssh/config (ssh_config(5)) with a pattern that begins with `vtk-`. Others are about other
hosts: a machine called `web` is not the host `web`, and the user of `Host *` is not the machine's. Taken from them:
User, IdentityFile, IdentitiesOnly, ProxyCommand, ProxyJump. Where the machine answers its provider knows, and its host
key is the pinned one, so HostName, Port and the rest are not.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

from minivmm.errors import ConfigError
from toolkit.vm.machine import Machine

KEYWORD = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*)")  # ssh_config(5): "keyword arguments" or "keyword=arguments"


def alias(name: str) -> str:
    """What the machine is called in ssh's files: its address may change, and be another machine's later."""
    return f"vtk-{name}"


class Settings(NamedTuple):
    """How to get into a machine's guest."""

    user: str
    identities: list[Path]  # private keys beside the machine's own
    agent: bool  # whether the keys of ssh-agent may be tried
    proxy: str  # a command whose standard input and output are the connection; "" for TCP


def settings_of(machine: Machine, user: str | None) -> Settings:
    """`user` before ~/.ssh/config's before the machine's. Raises ConfigError when that file cannot be understood."""
    file = Path(os.path.expanduser("~/.ssh/config"))
    try:
        text = file.read_text(errors="replace")
    except OSError:  # none, or not for us: as ssh(1), without
        text = ""
    blocks = _blocks_about_machines(text)
    if not blocks:
        return Settings(user or machine.config().user, [], True, "")
    from paramiko import SSHConfig
    from paramiko.ssh_exception import ConfigParseError

    host, port = machine.ssh_address()
    # The first value counts (ssh_config(5)): %h and %p are the address the machine has now.
    text = f"Host *\n  HostName {host}\n  Port {port}\n{blocks}"
    try:
        found = SSHConfig.from_text(text).lookup(alias(machine.name))
    except (ConfigParseError, ValueError) as error:
        raise ConfigError(f"{file} cannot be understood", cause=str(error), remedy=f"see to it: {file}") from error
    own = machine.directory / "id_ed25519"
    return Settings(
        user=user or found.get("user") or machine.config().user,
        identities=[Path(name) for name in found.get("identityfile", []) if Path(name) != own],
        agent=found.get("identitiesonly", "no").lower() != "yes" or "identityfile" not in found,
        proxy=found.get("proxycommand") or _jump(found.get("proxyjump") or "none", host, port),
    )


def _blocks_about_machines(text: str) -> str:
    kept, ours = [], False
    for line in text.splitlines():
        if (match := KEYWORD.match(line)) is not None:
            keyword = match[1].lower()
            if keyword in ("host", "match"):
                patterns = match[2].split() if keyword == "host" else []
                ours = any(pattern.strip('"').startswith(alias("")) for pattern in patterns)
        if ours:
            kept.append(line)
    return "\n".join(kept)


def _jump(hops: str, host: str, port: int) -> str:
    """ProxyJump as the ProxyCommand that ssh(1) makes of it."""
    if hops.lower() == "none":
        return ""
    *before, last = hops.split(",")
    through = ["-J", ",".join(before)] if before else []
    destination = last if "://" in last else f"ssh://{last}"
    return shlex.join(["ssh", *through, "-W", f"[{host}]:{port}", destination])


class Host(NamedTuple):
    """A machine as ssh(1) is told of it."""

    alias: str
    host: str
    port: int
    user: str
    identity_file: Path
    known_hosts: Path

    def block(self) -> str:
        """A `Host` block (ssh_config(5))."""
        lines = [
            f"Host {self.alias}",
            f"HostName {self.host}",
            f"Port {self.port}",
            f"User {self.user}",
            f"IdentityFile {_quoted(self.identity_file)}",
            "IdentitiesOnly yes",
            # The key is filed under the alias, so that it holds when the port changes; a first contact pins it there.
            f"HostKeyAlias {self.alias}",
            f"UserKnownHostsFile {_quoted(self.known_hosts)}",
            "StrictHostKeyChecking accept-new",
        ]
        return "\n    ".join(lines) + "\n"


def host_of(machine: Machine) -> Host:
    """Raises StateError, Unsupported."""
    host, port = machine.ssh_address()
    directory = machine.directory
    user = machine.config().user
    return Host(alias(machine.name), host, port, user, directory / "id_ed25519", directory / "known_hosts")


def _quoted(path: Path) -> str:
    """A path in which blanks, quotes and the tokens of ssh_config(5) mean nothing."""
    text = str(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
