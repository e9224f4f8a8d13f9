"""The images boot: tiny runs what it is told and ends; debian takes its seed and lets its user in by ssh."""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from toolkit.images import debian, tiny
from toolkit.images.debian_package import PackageMissing
from toolkit.images.overlay import overlay
from toolkit.images.seed import Seed
from toolkit.images.store import Image, ImageStore

pytestmark = [pytest.mark.slow, pytest.mark.qemu]

BOOT_TIMEOUT = 900.0  # seconds, emulated, on a busy host
QEMU = ("qemu-system-x86_64", "-accel", "tcg", "-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "machines")


def direct_boot(image: Image, more: str = "") -> list[str]:
    command_line = f"{image.cmdline} {more}".strip()
    return ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", command_line]


def test_tiny_runs_its_command_and_ends(store: ImageStore, tmp_path: Path) -> None:
    try:
        image = tiny.build(store, modules=["nvme"])
    except PackageMissing as error:
        pytest.skip(str(error))
    assert tiny.build(store, modules=["nvme"]) == image
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    command = [*QEMU, "-m", "256", *direct_boot(image, 'quiet vtk.run="ls /dev/vda /dev/nvme0n1; exit 3"')]
    command += ["-drive", f"if=virtio,format=raw,file={disk}"]
    command += ["-drive", f"if=none,id=n,format=raw,read-only=on,file={disk}", "-device", "nvme,serial=1,drive=n"]
    command += ["-snapshot"]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BOOT_TIMEOUT, check=True
    )
    said = (
        ended.stdout.split()
    )  # busybox's ls makes columns of what it finds, and more lines than one of a narrow console
    assert {"/dev/vda", "/dev/nvme0n1"} <= set(said), ended.stdout
    assert "vtk.run: exit status 3" in ended.stdout


@pytest.mark.skipif(not shutil.which("mmdebstrap"), reason="no mmdebstrap (try: apt install mmdebstrap)")
@pytest.mark.parametrize("runcmd", [pytest.param([], id="by vtk"), pytest.param(["touch /ran"], id="by cloud-init")])
def test_debian_takes_its_seed_and_lets_its_user_in(
    runcmd: list[str], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    once = tmp_path_factory.getbasetemp()
    image = debian.build(ImageStore(once / "images", once / "machines"))
    user_key, host_key = make_key(tmp_path / "user"), make_key(tmp_path / "host")
    seed = Seed(
        "i-1",
        "web",
        image.user,
        [user_key.with_suffix(".pub").read_text()],
        host_key=(host_key.read_text(), host_key.with_suffix(".pub").read_text()),
        extra={"runcmd": runcmd} if runcmd else {},
    ).write(tmp_path / "seed.iso")
    disk = overlay(image, tmp_path / "disk.qcow2", 4 << 30)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*QEMU, "-M", "q35", "-m", "768", *direct_boot(image)]
    command += ["-drive", f"if=virtio,format=qcow2,file={disk}"]
    command += ["-drive", f"if=virtio,format=raw,read-only=on,file={seed}"]
    command += ["-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=n"]
    with running(command, tmp_path / "console.log"), logged_in(port, image.user, user_key, host_key) as client:
        assert answer(client, "hostname") == "web"
        assert answer(client, "sudo id -u") == "0"
        assert answer(client, "cloud-init status --wait | tail -1") == f"status: {'done' if runcmd else 'disabled'}"
        assert answer(client, "systemctl --failed --no-legend") == ""
        assert answer(client, "cd /; ls ran") == "ran" * bool(runcmd)
        assert answer(client, "getent hosts web").split()[0] in ("127.0.1.1", "::1")
        assert int(answer(client, "df --output=size / | tail -1")) > 3 << 20  # KiB: it has grown with the disk


def make_key(path: Path) -> Path:
    subprocess.run([*shlex.split("ssh-keygen -q -t ed25519 -N '' -f"), str(path)], check=True, timeout=30)
    return path


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        try:
            yield
        except Exception as error:
            error.add_note(log.read_text(errors="replace")[-2000:])
            raise
        finally:
            process.kill()
            process.wait()


@contextmanager
def logged_in(port: int, user: str, user_key: Path, host_key: Path) -> Iterator[paramiko.SSHClient]:
    """A connection, tried until the machine is up; to no host but the one with `host_key`."""
    name = f"[127.0.0.1]:{port}"
    deadline = time.monotonic() + BOOT_TIMEOUT
    with paramiko.SSHClient() as client:
        client.get_host_keys().add(name, "ssh-ed25519", paramiko.Ed25519Key.from_private_key_file(str(host_key)))
        while True:
            try:
                client.connect(
                    "127.0.0.1",
                    port,
                    user,
                    key_filename=str(user_key),
                    allow_agent=False,
                    look_for_keys=False,
                    banner_timeout=30,
                )
                break
            except (paramiko.SSHException, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
        yield client


def answer(client: paramiko.SSHClient, command: str) -> str:
    _, output, _ = client.exec_command(command, timeout=BOOT_TIMEOUT)
    return output.read().decode().strip()
