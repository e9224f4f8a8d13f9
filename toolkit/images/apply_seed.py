#!/usr/bin/python3 -IS
"""Runs in the image `debian` before cloud-init: does what a seed of vtk's own says, in one second where emulated
cloud-init takes forty, and leaves every other seed to cloud-init, untouched.

The seed is NoCloud's (toolkit.images.seed): an ISO 9660 disk labelled `cidata`. Done here are the host name, users with
their authorized keys, and the ssh host key, as cloud-init does them, once for each instance-id. A seed that has
anything else in it, is not JSON, or is on another file system is cloud-init's. When the work is done, SEEDED says so
to the units of cloud-init, which then do not start.

Standard library only, and little of that: here every import costs 20 ms.
"""

from __future__ import annotations

import json
import os
import struct

TYPE_CHECKING = False  # importing it from typing would cost more than all of this
if TYPE_CHECKING:
    from typing import Any

SEEDED = "run/vtk-seeded"
DONE = "var/lib/vtk/instance-id"  # the last instance whose seed was followed
LABEL = b"cidata"

# What a seed may have in it to be followed here.
CONFIG_KEYS = {"hostname", "locale", "users", "ssh_deletekeys", "ssh_keys"}
USER_KEYS = {"name", "shell", "sudo", "lock_passwd", "ssh_authorized_keys"}
HOST_KEY_KEYS = {"ed25519_private", "ed25519_public"}
NETWORK = {"version": 2, "ethernets": {"ethernet": {"match": {"name": "e*"}, "dhcp4": True}}}  # the image's own way

SECTOR = 2048  # bytes of an ISO 9660 logical sector (ECMA-119, 6.1.2)
VOLUME_DESCRIPTOR = 16 * SECTOR  # the first one (ECMA-119, 6.2.1)
ROOT_RECORD = 156  # offset in it of the root's directory record (ECMA-119, 8.4)
RECORD = struct.Struct("<BxI4xI4x14xB")  # length, location of the extent, its bytes, length of the name (ECMA-119, 9.1)
FILES = {b"USERDATA.;1": "user-data", b"METADATA.;1": "meta-data", b"NETCONF.;1": "network-config"}
FILE_MAX = 1 << 20  # bytes

HOSTS = """127.0.0.1\tlocalhost
127.0.1.1\t{}
::1\tlocalhost ip6-localhost ip6-loopback
"""


def main(root: str = "/") -> str:
    """Follows the seed if it is one of ours, and returns what was done in a sentence."""
    seed = find_seed("/sys/block", "/dev")
    if seed is None:
        return "no seed disk: left to cloud-init"
    try:
        instance, config = understood(seed)
        done = os.path.join(root, DONE)
        again = os.path.exists(done) and read(done) == instance
        if not again:
            follow(config, root)
            write(done, instance, 0o644)
        write(os.path.join(root, SEEDED), "", 0o644)
        # cloud-init's generator says by `enabled` that it will run: `cloud-init status --wait` would wait for it.
        if os.path.exists(enabled := os.path.join(root, "run/cloud-init/enabled")):
            os.rename(enabled, os.path.join(root, "run/cloud-init/disabled"))
    except (KeyError, OSError, TypeError, ValueError) as error:
        return f"the seed is left to cloud-init: {error}"
    return f"instance {instance}: " + ("known" if again else "set up as its seed says")


def find_seed(block: str, devices: str) -> dict[str, str] | None:
    """The files of the first disk labelled `cidata`; None when there is none with an ISO 9660 file system."""
    for name in sorted(os.listdir(block)):
        try:
            with open(os.path.join(devices, name), "rb") as disk:
                disk.seek(VOLUME_DESCRIPTOR)
                descriptor = disk.read(SECTOR)
                if descriptor[:6] == b"\x01CD001" and descriptor[40:72].strip().lower() == LABEL:
                    _, place, size, _ = RECORD.unpack_from(descriptor, ROOT_RECORD)
                    return read_files(disk.fileno(), place, min(size, FILE_MAX))
        except (OSError, struct.error):  # no medium; not a file system
            continue
    return None


def read_files(disk: int, place: int, size: int) -> dict[str, str]:
    """The files of FILES in the directory whose extent is at sector `place`."""
    directory = os.pread(disk, size, place * SECTOR)
    found, offset = {}, 0
    while offset + RECORD.size <= len(directory):
        length, extent, extent_size, name_length = RECORD.unpack_from(directory, offset)
        if length == 0:  # records do not cross sectors: the rest of this one is empty (ECMA-119, 6.8.1.1)
            offset = (offset // SECTOR + 1) * SECTOR
            continue
        name = directory[offset + RECORD.size : offset + RECORD.size + name_length]
        if name in FILES:
            found[FILES[name]] = os.pread(disk, min(extent_size, FILE_MAX), extent * SECTOR).decode()
        offset += length
    return found


def understood(seed: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """The instance-id and the cloud-config of a seed that can be followed here. Raises ValueError, KeyError, TypeError
    for any other one."""
    kind, _, text = seed["user-data"].partition("\n")
    if kind != "#cloud-config":
        raise ValueError(f"user-data of kind {kind[:40]!r}")
    config, meta = json.loads(text), json.loads(seed["meta-data"])
    known("user-data", config, CONFIG_KEYS)
    known("meta-data", meta, {"instance-id", "local-hostname"})
    if json.loads(seed["network-config"]) != NETWORK:
        raise ValueError("it has a network-config of its own")
    if config["ssh_deletekeys"] is not True:
        raise ValueError("it keeps host keys")
    known("ssh_keys", config["ssh_keys"], HOST_KEY_KEYS)
    for user in config["users"]:
        known("users", user, USER_KEYS)
        if user["lock_passwd"] is not True:
            raise ValueError("a user has a password")
        if not all(type(user[key]) is str for key in ("name", "shell", "sudo")) or user["name"].startswith("-"):
            raise ValueError("a user is described in another way")
    return str(meta["instance-id"]), config


def known(where: str, mapping: dict[str, object], keys: set[str]) -> None:
    """Raises ValueError for keys that are not in `keys`, KeyError for those that are missing."""
    if unknown := sorted(set(mapping) - keys):
        raise ValueError(f"{where} has {', '.join(unknown)}")
    for key in keys - set(mapping):
        raise KeyError(f"{where} has no {key}")


def follow(config: dict[str, Any], root: str) -> None:
    """Sets the system up. A second time, after a crash in between, it comes to the same."""
    etc = os.path.join(root, "etc")
    write(os.path.join(etc, "hostname"), config["hostname"] + "\n", 0o644)
    write(os.path.join(etc, "hosts"), HOSTS.format(config["hostname"]), 0o644)
    write(os.path.join(etc, "default/locale"), f"LANG={config['locale']}\n", 0o644)
    if root == "/":
        write("/proc/sys/kernel/hostname", config["hostname"], 0o644, whole=False)
    for name in os.listdir(os.path.join(etc, "ssh")):
        if name.startswith("ssh_host_"):
            os.unlink(os.path.join(etc, "ssh", name))
    keys = config["ssh_keys"]
    write(os.path.join(etc, "ssh/ssh_host_ed25519_key"), keys["ed25519_private"].strip() + "\n", 0o600)
    write(os.path.join(etc, "ssh/ssh_host_ed25519_key.pub"), keys["ed25519_public"].strip() + "\n", 0o644)
    for user in config["users"]:
        make_user(user, root)
    rights = "".join(f"{user['name']} {user['sudo']}\n" for user in config["users"])
    write(os.path.join(etc, "sudoers.d/90-vtk-users"), rights, 0o440)


def make_user(user: dict[str, Any], root: str) -> None:
    """The user, without a password, and the keys that let them in."""
    passwd = os.path.join(root, "etc/passwd")
    entry = entry_of(passwd, user["name"])
    if entry is None:
        command = ["useradd", "--root", root, "--create-home", "--shell", user["shell"], user["name"]]
        if root == "/":
            del command[1:3]
        if os.spawnvp(os.P_WAIT, command[0], command) != 0:
            raise OSError(f"useradd {user['name']} failed")
        entry = entry_of(passwd, user["name"])
        assert entry is not None
    uid, gid, home = int(entry[2]), int(entry[3]), entry[5]
    directory = os.path.join(root, home.lstrip("/"), ".ssh")
    os.makedirs(directory, 0o700, exist_ok=True)
    os.chown(directory, uid, gid)
    write(os.path.join(directory, "authorized_keys"), "\n".join([*user["ssh_authorized_keys"], ""]), 0o600, (uid, gid))


def entry_of(passwd: str, name: str) -> list[str] | None:
    """The fields of a user's line in passwd(5)."""
    for line in read(passwd).splitlines():
        fields = line.split(":")
        if fields[0] == name and len(fields) == 7:
            return fields
    return None


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str, mode: int, owner: tuple[int, int] = (0, 0), *, whole: bool = True) -> None:
    """Makes the file have this content: `whole`, after a crash, or not at all."""
    part = path + ".vtk" if whole else path
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        file.write(text)
        if whole:
            os.fchmod(file.fileno(), mode)
            os.fchown(file.fileno(), *owner)
            file.flush()
            os.fsync(file.fileno())
    if whole:
        os.rename(part, path)


if __name__ == "__main__":
    print(f"vtk: {main()}", flush=True)
