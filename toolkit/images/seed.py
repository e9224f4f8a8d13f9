"""cloud-init's NoCloud seed: an ISO 9660 disk labelled `cidata` that tells an image's machine who it is.

cloud-init documentation, "NoCloud" (files user-data, meta-data and network-config in the root of the disk) and "Cloud
config". The files are YAML; what is written here is JSON, which YAML 1.2 includes.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from minivmm.errors import ConfigError

LABEL = "cidata"
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)  # RFC 1123, 2.1
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8)
ISO_NAMES = {"user-data": "USERDATA", "meta-data": "METADATA", "network-config": "NETCONF"}
"""File names as ISO 9660 level 3 can have them, beside those of Rock Ridge and Joliet."""


class Seed(NamedTuple):
    """What a machine is told at its first boot."""

    instance_id: str  # another one makes cloud-init do its first-boot work again
    hostname: str
    user: str = "debian"
    authorized_keys: Sequence[str] = ()  # lines as in ~/.ssh/authorized_keys
    password: str = ""  # for the console; "" leaves it locked
    host_key: tuple[str, str] | None = None  # ed25519, (private, public) as in the files of /etc/ssh
    network: dict[str, Any] | None = None  # network-config, version 2; None is DHCP on every Ethernet
    extra: Mapping[str, Any] = MappingProxyType({})  # more cloud-config: "packages", "runcmd", …

    def files(self) -> dict[str, str]:
        """The content of the disk. Raises ConfigError for names that Linux would refuse."""
        if HOSTNAME.fullmatch(self.hostname) is None:
            raise ConfigError(f"{self.hostname!r} cannot be a host name", cause="RFC 1123, 2.1")
        if USER.fullmatch(self.user) is None:
            raise ConfigError(f"{self.user!r} cannot be a user's name", cause="useradd(8)")
        for key in self.authorized_keys:
            if "\n" in key.strip() or "PRIVATE" in key:
                raise ConfigError("an authorized key is one line of a .pub file", cause=f"not {key[:40]!r}")
        user: dict[str, Any] = {
            "name": self.user,
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "lock_passwd": not self.password,
            "ssh_authorized_keys": [key.strip() for key in self.authorized_keys],
        }
        if self.password:
            user["plain_text_passwd"] = self.password
        config: dict[str, Any] = {
            "hostname": self.hostname,
            "locale": "C.UTF-8",
            "users": [user],
        }
        if self.password:
            config["ssh_pwauth"] = False  # said only where it matters: cloud-init starts sshd anew for it
        if self.host_key is not None:
            config["ssh_deletekeys"] = True
            config["ssh_keys"] = {"ed25519_private": self.host_key[0], "ed25519_public": self.host_key[1]}
        ethernet = {"match": {"name": "e*"}, "dhcp4": True}
        network = self.network or {"version": 2, "ethernets": {"ethernet": ethernet}}
        return {
            "user-data": "#cloud-config\n" + json.dumps({**config, **self.extra}, indent=2) + "\n",
            "meta-data": json.dumps({"instance-id": self.instance_id, "local-hostname": self.hostname}) + "\n",
            "network-config": json.dumps(network, indent=2) + "\n",
        }

    def write(self, path: Path) -> Path:
        """Makes the ISO image `path`, readable by its owner only: it may hold a private key. Returns `path`."""
        import pycdlib

        iso = pycdlib.PyCdlib()
        iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
        for name, text in self.files().items():
            content = text.encode()
            iso.add_fp(
                io.BytesIO(content),
                len(content),
                f"/{ISO_NAMES[name]}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                iso.write_fp(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        finally:
            iso.close()
        return path
