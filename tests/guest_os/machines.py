"""The guests on QEMU's microvm, driven by plain subprocesses: what the tests of guest_os run them on."""

from __future__ import annotations

import json
import selectors
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

DEADLINE = 60.0  # seconds; nothing here needs one, a loaded machine may

_CPU = {"kvm": "host,-arch-capabilities", "tcg": "max"}


class Finished(NamedTuple):
    """How a guest ended: QEMU's exit status (isa-debug-exit makes code v into (v << 1) | 1) and the console's text."""

    status: int
    text: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON lines of the console."""
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]


def qemu(accel: str, elf: Path, *, append: str = "", memory: int = 64, extra: tuple[str, ...] = ()) -> list[str]:
    """The command that runs `elf` on QEMU's microvm, its console on standard input and output."""
    return [
        *("qemu-system-x86_64", "-M", "microvm,acpi=off", "-accel", accel, "-cpu", _CPU[accel], "-m", str(memory)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-device", "pvpanic"),
        *("-global", "virtio-mmio.force-legacy=false", "-kernel", str(elf), "-append", append, *extra),
    ]


def disk_arguments(path: Path, *, read_only: bool) -> tuple[str, ...]:
    drive = f"if=none,id=disk,format=raw,file={path},readonly={'on' if read_only else 'off'}"
    return ("-drive", drive, "-device", "virtio-blk-device,drive=disk")


RNG_ARGUMENTS = ("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng")


def run(command: list[str], text: str = "") -> Finished:
    """Runs a guest to its end."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=DEADLINE, check=False)
    return Finished(done.returncode, done.stdout)


class Session:
    """The conversation of docs/guest.md with the bench guest or the native program."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._buffer = b""
        self.text: list[str] = []  # the lines that were not JSON
        self.ready = self.receive()

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next JSON line. Raises EOFError when the other side has ended, TimeoutError when it says nothing."""
        assert self._process.stdout is not None
        end = time.monotonic() + DEADLINE
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                line, newline, rest = self._buffer.partition(b"\n")
                if newline:
                    self._buffer = rest
                    if line.startswith(b"{"):
                        message: dict[str, Any] = json.loads(line)
                        return message
                    self.text.append(line.decode())
                    continue
                if not selector.select(end - time.monotonic()):
                    raise TimeoutError(f"nothing after {self._buffer!r}")
                data = self._process.stdout.read1(65536)  # type: ignore[attr-defined]
                if not data:
                    raise EOFError(f"ended after {self._buffer!r}")
                self._buffer += data

    def run(self, name: str, batches: int) -> dict[str, Any]:
        """The end or error line of one run."""
        self.send(f"run {name} {batches}")
        message = self.receive()
        if "begin" in message:
            assert message == {"begin": name}
            message = self.receive()
        return message

    def quit(self) -> int:
        """Ends the other side; its exit status."""
        self.send("quit")
        return self._process.wait(DEADLINE)


@contextmanager
def session(command: list[str]) -> Iterator[Session]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Session(process)
        finally:
            process.kill()
