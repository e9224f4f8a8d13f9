"""A user who is not root makes images, and a machine of one, from nothing to its end."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import toolkit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a user, and become one"),
    pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap (try: apt install mmdebstrap)"),
    pytest.mark.skipif(not shutil.which("newuidmap"), reason="no newuidmap (try: apt install uidmap)"),
]

BUILD_TIMEOUT = 1800.0  # seconds; measured 110 to 400
BOOT_TIMEOUT = 900.0  # 25 on an idle host of two CPUs; and while six others boot a machine

Vtk = Callable[..., str]


@pytest.fixture
def user() -> Iterator[pwd.struct_passwd]:
    """A new user with subordinate ids, and a home of their own; gone afterwards with all that runs and lies there."""
    name = f"vtk-{secrets.token_hex(4)}"
    subprocess.run(["useradd", "--create-home", name], check=True, timeout=60)
    try:
        yield pwd.getpwnam(name)
    finally:
        uid = pwd.getpwnam(name).pw_uid
        subprocess.run(["pkill", "-KILL", "--uid", str(uid)], check=False, timeout=60)
        subprocess.run(["userdel", "--remove", name], check=True, timeout=60, stderr=subprocess.DEVNULL)


def python_for(user: pwd.struct_passwd) -> str:
    """An interpreter of this version that the user may run: this one need not be, below root's home."""
    version = "import sys; print(*sys.version_info[:2])"
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            told = subprocess.run(
                [python, "-c", version],
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        except OSError:  # not theirs to run
            continue
        if told.stdout.split() == [str(part) for part in sys.version_info[:2]]:
            return python
    pytest.skip(f"no Python {sys.version_info[0]}.{sys.version_info[1]} that another user may run")


@pytest.fixture
def vtk(user: pwd.struct_passwd) -> Vtk:
    """Runs `vtk` as that user, and returns what it printed."""
    python = python_for(user)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "PATH": "/usr/local/bin:/usr/bin:/bin",  # as a user has it: without sbin
        "PYTHONPATH": os.pathsep.join([str(Path(toolkit.__file__).parents[1]), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    def run(*arguments: str, timeout: float = BOOT_TIMEOUT) -> str:
        done = subprocess.run(
            [python, "-m", "toolkit.cli", *arguments],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd=user.pw_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"vtk {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_an_ordinary_user_builds_both_images_and_uses_a_machine(vtk: Vtk, user: pwd.struct_passwd) -> None:
    vtk("image", "build", "tiny", timeout=BUILD_TIMEOUT)
    vtk("image", "build", "debian", timeout=BUILD_TIMEOUT)
    assert [line.split()[0] for line in vtk("image", "list").splitlines()] == ["debian", "tiny"]
    vtk("vm", "create", "d", "--image", "debian", "--mem", "768M", "--cpus", "2", "--accel", "tcg")
    vtk("vm", "start", "d")
    vtk("vm", "wait", "d", "--for", "ssh", "--timeout", str(BOOT_TIMEOUT - 20))
    assert vtk("vm", "exec", "d", "--", "sudo", "id", "-un").strip() == "root"
    # The image's files kept their owners through the user's namespace.
    assert vtk("vm", "exec", "d", "--", "stat", "-c", "%U", "/usr/bin/sudo", "/home/debian").split() == [
        "root",
        "debian",
    ]
    live_through(vtk, "d")
    vtk("vm", "migrate", "d")
    assert vtk("vm", "exec", "d", "--", "uname").strip() == "Linux"
    vtk("vm", "stop", "d", "--timeout", "200")
    vtk("vm", "create", "t", "--image", "tiny", "--mem", "256M", "--accel", "tcg")
    vtk("vm", "start", "t")
    vtk("vm", "wait", "t", "--for", "console:ends the machine", "--timeout", "120")
    vtk("vm", "kill", "t")
    vtk("vm", "delete", "d")
    vtk("vm", "delete", "t")
    if importlib.util.find_spec("libvirt") is not None and shutil.which("libvirtd", path="/usr/sbin"):
        on_libvirt(vtk)
    assert vtk("vm", "list") == ""
    left = [path for path in Path("/tmp").glob("vtk-image.*") if path.stat().st_uid == user.pw_uid]
    assert left == []


def on_libvirt(vtk: Vtk) -> None:
    """The same on the user's own libvirt, whose daemon starts when it is asked."""
    uri = "qemu:///session"
    vtk(
        "vm",
        "create",
        "l",
        "--image",
        "debian",
        "--mem",
        "768M",
        "--accel",
        "tcg",
        "--provider",
        "libvirt",
        "--uri",
        uri,
    )
    vtk("vm", "start", "l")
    vtk("vm", "wait", "l", "--for", "ssh", "--timeout", str(BOOT_TIMEOUT - 20))
    live_through(vtk, "l")
    vtk("vm", "stop", "l", "--timeout", "200")
    vtk("vm", "delete", "l")


def live_through(vtk: Vtk, name: str) -> None:
    """A snapshot, what is lost by going back to it, and a balloon."""
    vtk("vm", "snapshot", name, "clean")
    vtk("vm", "exec", name, "--", "sh", "-c", "echo after > note")
    vtk("vm", "restore", name, "clean")
    assert vtk("vm", "exec", name, "--", "sh", "-c", "ls note 2>/dev/null || echo gone").strip() == "gone"
    vtk("vm", "balloon", name, "500M", "--wait")
