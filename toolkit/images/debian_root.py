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

SEED_UNIT = """[Unit]
Description=What the seed of this machine says
DefaultDependencies=no
After=systemd-remount-fs.service systemd-sysusers.service
Before=cloud-init-local.service systemd-networkd.service ssh.service serial-getty@ttyS0.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -IS /usr/lib/vtk/apply-seed
StandardOutput=journal+console
"""

UNSEEDED = "[Unit]\nConditionPathExists=!/run/vtk-seeded\n"
CLOUD_INIT_UNITS = ("cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service")

INITRD_HOOK = """#!/bin/sh
# Modules that are there for udev to load where the device is, in place of being loaded on every machine.
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules {modules}
""".format(modules=" ".join(INITRD_MODULES))

FILES = {
    # Grown to its disk's size: an overlay may be larger than the image.
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro,x-systemd.growfs 0 1\n",
    "etc/hostname": "debian\n",
    # Without a seed's network-config: DHCP on every Ethernet there is.
    "etc/systemd/network/80-dhcp.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    # A machine without a network must boot in seconds too.
    "etc/systemd/system/systemd-networkd-wait-online.service.d/limit.conf": (
        "[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=15\n"
    ),
    # A program of ours follows a seed of vtk's own in a second; any other is cloud-init's, in forty when emulated.
    "usr/lib/vtk/apply-seed": Path(__file__).with_name("apply_seed.py").read_text(encoding="utf-8"),
    "etc/systemd/system/vtk-seed.service": SEED_UNIT,
    **{f"etc/systemd/system/{unit}.d/vtk.conf": UNSEEDED for unit in CLOUD_INIT_UNITS},
    # cloud-init always runs where it is needed: no looking around for who could have made this machine.
    "etc/cloud/ds-identify.cfg": "policy: enabled\n",
    "etc/ssh/sshd_config.d/vtk.conf": "PasswordAuthentication no\n",
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
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    # For hardware that no machine of ours has: a screen, variables of EFI, crash records in them.
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "systemd-pstore.service",
)

EARLY = f"""
set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/vtk"
cat >"$1/etc/initramfs-tools/hooks/vtk" <<'END'
{INITRD_HOOK}
END
chmod 755 "$1/etc/initramfs-tools/hooks/vtk"
"""

LATE = """
set -e
chroot "$1" systemctl enable systemd-networkd
mkdir -p "$1/etc/systemd/system/sysinit.target.wants"
ln -s ../vtk-seed.service "$1/etc/systemd/system/sysinit.target.wants/"
# Names are resolved for programs that are up, not before any may start: it takes an emulated machine seconds.
sed -E '/^Before=/s/(basic|network|sysinit)[.]target ?//g; s/^WantedBy=.*/WantedBy=multi-user.target/' \\
    "$1/lib/systemd/system/systemd-resolved.service" >"$1/etc/systemd/system/systemd-resolved.service"
chroot "$1" systemctl reenable systemd-resolved
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


def apart(mode: str) -> Sequence[str]:
    """What to put before mmdebstrap run as root: what it mounts in the root is seen, and lasts, in there only, and
    when it is killed, all it started goes with it. Nothing where there are no namespaces, and for the other modes."""
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    return unshare if mode == "root" and answer_of(*unshare, "echo", "works", timeout=30.0) == "works\n" else ()


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
