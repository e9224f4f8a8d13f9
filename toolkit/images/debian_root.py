"""What is in the root of the image `debian`, and how mmdebstrap is asked for it."""

from __future__ import annotations

import io
import os
import pwd
import re
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path

from minivmm.errors import ConfigError
from toolkit.asking import answer_of
from toolkit.images.errors import ToolMissing

PACKAGES = (
    "cloud-init",
    "dbus",
    "initramfs-tools",
    "iproute2",
    "linux-image-cloud-amd64",
    "openssh-server",
    "python3",
    "qemu-guest-agent",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",  # for the initrd: faster than gzip to unpack
)

INITRD_MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "nvme",
    "ata_piix",
    "ahci",
    "ext4",
)
"""Whatever the root may be found on; in place of every module there is, which takes an emulated machine seconds."""

FILES = {
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "debian\n",
    # Without a seed's network-config: DHCP on every Ethernet there is.
    "etc/systemd/network/80-dhcp.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    # A machine without a network must boot in seconds too.
    "etc/systemd/system/systemd-networkd-wait-online.service.d/limit.conf": (
        "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=15\n"
    ),
    # Seeds by NoCloud only, so no waiting for others; one kind of host key: the others take minutes when emulated.
    "etc/cloud/cloud.cfg.d/90-vtk.cfg": (
        "datasource_list: [NoCloud, None]\n"
        "ssh_genkeytypes: [ed25519]\n"
        "apt_preserve_sources_list: true\n"
        "manage_etc_hosts: true\n"
        "cloud_config_modules: [ssh_import_id, locale, set_passwords, runcmd]\n"
        "cloud_final_modules: [package_update_upgrade_install, write_files_deferred, scripts_user, final_message]\n"
    ),
}

UNWANTED = (
    # Work that a lab machine's first minutes are not for.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
)

EARLY = """
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/vtk"
printf '%s\\n' {modules} >"$1/usr/share/initramfs-tools/modules.d/vtk"
""".format(modules=" ".join(INITRD_MODULES))

LATE = """
set -e
chroot "$1" systemctl enable systemd-networkd
rm -f "$1"/etc/ssh/ssh_host_*
"""
# Host keys that all machines of an image shared would be nobody's.

DROPPED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
KEPT = ("/usr/share/doc/*/copyright",)

SUITE_NAME = re.compile(r"[a-z][a-z0-9-]*")
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian Policy 5.6.1


def check_names(suite: str, packages: Sequence[str]) -> None:
    """Raises ConfigError for what cannot be a suite's or a package's name: mmdebstrap would take it for an option."""
    if SUITE_NAME.fullmatch(suite) is None:
        raise ConfigError(f"{suite!r} is no suite of Debian's", remedy="--suite bookworm")
    for package in packages:
        if PACKAGE_NAME.fullmatch(package) is None:
            raise ConfigError(f"{package!r} cannot be the name of a Debian package", cause="Debian Policy 5.6.1")


def mode() -> str:
    """mmdebstrap's mode for this user: root, unshare or fakechroot. Raises ToolMissing when none can work."""
    if os.geteuid() == 0:
        return "root"
    if shutil.which("newuidmap") and _has_subordinate_ids():
        return "unshare"
    if shutil.which("fakechroot") and shutil.which("fakeroot"):
        return "fakechroot"
    user = pwd.getpwuid(os.geteuid()).pw_name
    if shutil.which("newuidmap") is None:
        cause, remedy = "neither newuidmap nor fakechroot is installed", "sudo apt install uidmap"
    else:
        cause = f"user {user} has no entry in /etc/subuid and /etc/subgid, and fakechroot is not installed"
        remedy = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    raise ToolMissing("an ordinary user cannot make a Debian root here", cause=cause, remedy=remedy)


def command(
    mmdebstrap: str, mode: str, suite: str, packages: Sequence[str], files: Path, archive: Path
) -> Sequence[str]:
    """The command line that makes the root as `archive`, with the archive `files` put over it."""
    return [
        mmdebstrap,
        f"--mode={mode}",
        "--variant=minbase",
        "--format=tar",
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={path}" for path in DROPPED),
        *(f"--dpkgopt=path-include={path}" for path in KEPT),
        f"--include={','.join(packages)}",
        f"--essential-hook={EARLY}",
        f"--customize-hook=tar-in '{files}' /",
        f"--customize-hook={LATE}",
        suite,
        str(archive),
        *sources(suite),
    ]


def with_its_ids(mmdebstrap: str, mode: str) -> Sequence[str]:
    """What to put before a command that reads the root's files: so that it sees their owners."""
    return {"root": [], "unshare": [mmdebstrap, "--unshare-helper"], "fakechroot": ["fakeroot", "--"]}[mode]


def sources(suite: str) -> list[str]:
    """The sources.list lines of this host's apt for `suite`; none when it has none: mmdebstrap then uses Debian's."""
    targets = answer_of(
        *("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI) $(RELEASE) $(COMPONENT)"),
        "Created-By: Packages",
        timeout=30.0,
    )
    lines = []
    for target in targets.splitlines():
        origin, codename, *source = target.split()
        if origin == "Debian" and (codename == suite or codename.startswith(f"{suite}-")):
            lines.append(" ".join(["deb", *source]))
    return sorted(set(lines))


def write_files(archive: Path) -> None:
    """Writes the tar archive of FILES and of the links that mask UNWANTED, all owned by root."""
    with tarfile.open(archive, "w") as tar:
        for name, text in FILES.items():
            member = tarfile.TarInfo(name)
            content = text.encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for unit in UNWANTED:
            link = tarfile.TarInfo(f"etc/systemd/system/{unit}")
            link.type, link.linkname = tarfile.SYMTYPE, "/dev/null"
            tar.addfile(link)


def _has_subordinate_ids() -> bool:
    """Whether /etc/subuid (subuid(5)) gives this user ids to map."""
    names = {pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid())}
    try:
        lines = Path("/etc/subuid").read_text().splitlines()
    except OSError:
        return False
    return any(line.partition(":")[0] in names for line in lines)
