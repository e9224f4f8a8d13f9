"""A libvirt daemon of the test's own: nothing of the host's libvirt is touched, and several live side by side.

For root it is a system's daemon in a mount namespace, where /run, /etc/libvirt and /var/lib/libvirt are the test's, and
a UTS namespace, so that it is another host to its neighbours (unshare(1)). For a user it is a session's, by what XDG
has for the purpose.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

START_TIMEOUT = 30.0  # seconds
END_TIMEOUT = 10.0
PROGRAMS = ("qemu-system-x86_64", "qemu-img")  # all that it is to find: it probes every QEMU it sees, for seconds

NAMESPACE = """set -e
/bin/mount --make-rprivate /
/bin/mkdir -p /run/libvirt /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
for pair in run:/run etc:/etc/libvirt lib:/var/lib/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
    /bin/mount --bind "$ROOT/${pair%%:*}" "${pair#*:}"
done
/bin/hostname "$NAME"
exec "$@"
"""


def obstacle() -> str:
    """Why there can be none; "" when there can."""
    try:
        import libvirt  # noqa: F401
    except ImportError:
        return "libvirt-python is not installed (try: sudo apt install libvirt-dev pkg-config gcc, then make setup)"
    if _libvirtd() is None:
        return "libvirtd is not installed (try: sudo apt install libvirt-daemon libvirt-daemon-driver-qemu)"
    if os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "--uts", "true"], check=False).returncode != 0:
        return "no mount namespace can be made here"
    return ""


def _libvirtd() -> str | None:
    return shutil.which("libvirtd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


class Daemon:
    """A running one. Its directory has a short path: unix sockets are below it (unix(7): 107 bytes)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = Path(tempfile.mkdtemp(prefix="vtk-lv-", dir="/tmp"))
        for folder in ("run/lock", "etc", "lib", "log", "cache", "sock", "bin", "home"):
            (self.root / folder).mkdir(parents=True)
        for program in PROGRAMS:
            if path := shutil.which(program):
                (self.root / "bin" / program).symlink_to(path)
        (self.root / "libvirtd.conf").write_text(
            f'unix_sock_dir = "{self.root}/sock"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
            f'host_uuid = "{uuid.uuid4()}"\nlog_outputs = "3:file:{self.root}/libvirtd.log"\n'
        )
        qemu = 'security_driver = "none"\nnamespaces = []\nstdio_handler = "file"\n'
        if self.is_root:
            qemu += 'user = "root"\ngroup = "root"\n'
        for settings in (self.root / "etc", self.root / "home" / "libvirt"):
            settings.mkdir(exist_ok=True)
            (settings / "qemu.conf").write_text(qemu)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def is_root(self) -> bool:
        return os.geteuid() == 0

    @property
    def uri(self) -> str:
        return f"qemu+unix:///{'system' if self.is_root else 'session'}?socket={self.socket}"

    @property
    def socket(self) -> Path:
        return self.root / ("sock" if self.is_root else "run/libvirt") / "libvirt-sock"

    def start(self) -> None:
        """Returns when it answers."""
        binary = _libvirtd()
        assert binary is not None
        self.socket.unlink(missing_ok=True)
        line = [binary, "-f", str(self.root / "libvirtd.conf"), "-p", str(self.root / "libvirtd.pid")]
        if self.is_root:
            line = ["/usr/bin/unshare", "--mount", "--uts", "/bin/sh", "-c", NAMESPACE, "sh", *line]
        environment = {
            "PATH": f"{self.root}/bin:/sbin:/usr/sbin",
            "ROOT": str(self.root),
            "NAME": self.name,
            "LC_ALL": "C.UTF-8",
        }
        environment |= {name: str(self.root / "home") for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        environment |= {"XDG_RUNTIME_DIR": str(self.root / "run"), "XDG_STATE_HOME": str(self.root / "home")}
        with open(self.root / "stderr", "wb") as stderr:
            self.process = subprocess.Popen(line, env=environment, stdin=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + START_TIMEOUT
        while not self.socket.exists():
            assert self.process.poll() is None, (self.root / "stderr").read_text()
            assert time.monotonic() < deadline, "libvirtd does not start"
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; its machines go on."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(END_TIMEOUT)

    def qemu_pid(self, domain: str) -> int:
        run = self.root / ("run/libvirt/qemu" if self.is_root else "run/libvirt/qemu/run")
        return int((run / f"{domain}.pid").read_text())

    def end(self) -> None:
        """And every machine of it."""
        self.kill()
        for file in self.root.glob("run/libvirt/qemu/**/*.pid"):
            if file.stem != "driver":
                try:
                    os.kill(int(file.read_text()), signal.SIGKILL)
                except (OSError, ValueError):
                    continue
        shutil.rmtree(self.root, ignore_errors=True)
