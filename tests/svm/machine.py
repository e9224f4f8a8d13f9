"""The emulated AMD machine: one QEMU process that boots, runs one command in this checkout, and powers off."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from minivmm.boot import bzimage
from minivmm.errors import HostError, ImageError
from toolkit.images import debian_kernel, initramfs

CHECKOUT = Path(__file__).parents[2]
QEMU = "qemu-system-x86_64"
MODULES = ("kvm-amd", "9p", "9pnet_virtio", "overlay", "virtio_pci")
KERNEL_COMMAND_LINE = "console=ttyS0 quiet panic=-1 oops=panic"  # panic=-1: reboot, which -no-reboot makes an end
MEMORY_MIB = 2048
SILENCE_LIMIT = 600.0  # seconds without a byte on the console: it hangs
KEPT_LINES = 40  # of the console, shown when the machine dies


class MachineDied(HostError):
    """The emulated machine ended, or was ended, before its command did."""


class Limits(NamedTuple):
    """How long the machine may take, in seconds."""

    total: float
    silence: float = SILENCE_LIMIT


def prepare(directory: Path) -> tuple[Path, Path]:
    """The kernel and the initramfs, written into `directory`. Raises HostError where they cannot be had."""
    if shutil.which(QEMU) is None:
        raise HostError(f"there is no {QEMU}", remedy="sudo apt-get install qemu-system-x86")
    kernel = debian_kernel.fetch()
    kernel_file = directory / "vmlinux"
    try:
        # Unpacked here it reaches /dev/kvm after 5 s; the bzImage unpacks itself, in the emulator, and takes 9 s.
        kernel_file.write_bytes(bzimage.vmlinux(kernel.vmlinuz))
    except ImageError:
        kernel_file = kernel.vmlinuz
    init = Path(__file__).with_name("guest_init.sh").read_text()
    initrd_file = directory / "initramfs.cpio"
    initrd_file.write_bytes(initramfs.build(initramfs.busybox(), kernel, MODULES, init))
    return kernel_file, initrd_file


def run(command: list[str], directory: Path, limits: Limits, output: IO[str]) -> int:
    """Runs `command` in this checkout on the emulated machine and returns its exit status.

    `directory` receives the results: it is /run/results for the command. The console is copied to `output`, every
    line with the seconds since the start. Raises HostError where there is no such machine to be had, and
    MachineDied with the last lines of the console.
    """
    results = directory / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    kernel, initrd = prepare(directory)
    # Through a pipe, so that the command does not draw progress as on a terminal; sh has no pipefail.
    (results / "run.sh").write_text(
        f"cd {shlex.quote(str(CHECKOUT))} || exit 99\n"
        f"export PATH={shlex.quote(os.environ['PATH'])} HOME={shlex.quote(str(Path.home()))} LANG=C.UTF-8\n"
        f"{{ {shlex.join(command)} 2>&1; echo $? >/tmp/status; }} | cat\n"
        "exit $(cat /tmp/status)\n"
    )
    with (directory / "qemu.log").open("w+") as qemu_log, _started(kernel, initrd, results, qemu_log) as qemu:
        assert qemu.stdout is not None
        console = Console(output)
        console.write(b"an emulated AMD EPYC with SVM boots (QEMU TCG) ...\n")
        end = _follow(qemu.stdout.fileno(), console, limits)
        if end is None:
            # The console is closed: QEMU is on its way out.
            with suppress(subprocess.TimeoutExpired):
                qemu.wait(10)
        status = results / "status"
        if status.is_file() and (text := status.read_text().strip()):
            return int(text)
        qemu_log.seek(0)
        raise MachineDied(
            f"the emulated machine {end or 'ended before its command did'}",
            cause="\n".join(["its console ended with:", *console.last_lines(), *qemu_log.read().splitlines()[-5:]]),
        )


class Console:
    """Copies the console to a stream, each line with its time, and remembers the last ones."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._started = time.monotonic()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._line = ""

    def write(self, data: bytes) -> None:
        for piece in data.decode(errors="replace").replace("\r", "").splitlines(keepends=True):
            if not self._line:
                self._output.write(f"[{time.monotonic() - self._started:5.0f} s] ")
            self._output.write(piece)
            self._line += piece
            if piece.endswith("\n"):
                self._lines.append(self._line.rstrip())
                self._line = ""
        self._output.flush()

    def last_lines(self) -> list[str]:
        return [*self._lines, self._line] if self._line else list(self._lines)


def _follow(descriptor: int, console: Console, limits: Limits) -> str | None:
    """Copies what comes from `descriptor` until it closes: None; or until a limit is passed: which one, in words."""
    deadline = time.monotonic() + limits.total
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return f"was stopped: it did not finish within {limits.total:.0f} s"
            if not selector.select(min(left, limits.silence)):
                if left > limits.silence:
                    return f"was stopped: it said nothing for {limits.silence:.0f} s"
                continue
            data = os.read(descriptor, 65536)
            if not data:
                return None
            console.write(data)


@contextmanager
def _started(kernel: Path, initrd: Path, results: Path, qemu_log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The QEMU process; gone when the block is left, and when this process dies."""
    command = [
        *("setpriv", "--pdeathsig", "KILL"),
        # One CPU: with two, QEMU 7.2 was seen to stop dead after hundreds of nested machines, and was no faster.
        *(QEMU, "-machine", "q35", "-accel", "tcg", "-cpu", "EPYC,+svm", "-smp", "1", "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", KERNEL_COMMAND_LINE),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"local,id=results,path={results},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=results,mount_tag=results"),
    ]
    # A session of its own: Ctrl-C on the terminal reaches this process, which then ends QEMU.
    qemu = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=qemu_log, start_new_session=True
    )
    try:
        yield qemu
    finally:
        qemu.kill()
        qemu.wait()
        if qemu.stdout is not None:
            qemu.stdout.close()
