"""Commands and shells over OpenSSH's sshd: input as it comes, an end that is clean, a terminal that is one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.vm.machine import Machine
from toolkit.vm.ssh import execute
from toolkit.vm.ssh_terminal import TildeEscape

Reached = Callable[..., Machine]
LINE = [sys.executable, "-m", "toolkit.cli", "vm"]
DEADLINE = 30.0  # seconds


def test_input_arrives_as_it_comes(reached: Reached) -> None:
    machine = reached()
    source, typing = os.pipe()
    echoed = threading.Event()
    said = bytearray()

    def hear(data: bytes) -> None:
        said.extend(data)
        echoed.set()

    statuses: list[int] = []
    running = threading.Thread(
        target=lambda: statuses.append(execute(machine, "cat", stdout=hear, stderr=hear, stdin=source)), daemon=True
    )
    running.start()
    os.write(typing, b"first\n")
    assert echoed.wait(DEADLINE)  # the input has not ended
    assert bytes(said) == b"first\n"
    os.write(typing, b"second\n")
    os.close(typing)
    running.join(DEADLINE)
    os.close(source)
    assert (statuses, bytes(said)) == ([0], b"first\nsecond\n")


def test_a_command_may_end_without_reading_its_input(reached: Reached) -> None:
    machine = reached()
    with open("/dev/zero", "rb") as endless:
        status = execute(machine, "exit 3", stdout=len, stderr=len, stdin=endless.fileno())  # type: ignore[arg-type]
    assert status == 3


def test_every_byte_both_ways(reached: Reached) -> None:
    machine = reached()
    data = os.urandom(5 << 20)  # more than a window of the channel
    said, words = bytearray(), bytearray()
    status = execute(machine, "tee /dev/stderr", stdout=said.extend, stderr=words.extend, stdin=data)
    assert status == 0
    assert said == data
    assert words == data


def test_the_statuses_are_those_of_ssh(reached: Reached) -> None:
    machine = reached()

    def status(*words: str) -> tuple[int, str]:
        done = subprocess.run([*LINE, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert status("ssh", "a", "--", "echo a | tr a b; exit 9") == (9, "b\n")
    assert status("exec", "a", "--", "sh", "-c", "kill -9 $$") == (255, "")
    (machine.directory / "known_hosts").write_text("vtk-a ssh-ed25519 AAAA\n")
    returned, told = status("exec", "a", "--", "true")
    assert returned == 255
    assert "shows another host key than at first" in told
    assert "try:   rm " in told


def test_ctrl_c_leaves_nothing_running(reached: Reached) -> None:
    reached()
    process = subprocess.Popen(
        [*LINE, "exec", "a", "--", "sh", "-c", "echo $$; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    there = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE) == 130
    deadline = time.monotonic() + DEADLINE
    while Path(f"/proc/{there}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_output_that_nobody_reads_ends_the_command(reached: Reached) -> None:
    reached()
    process = subprocess.Popen([*LINE, "exec", "a", "-n", "--", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(DEADLINE) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


class Screen:
    """A process on a terminal of its own."""

    def __init__(self, fd: int, pid: int) -> None:
        self.fd, self.pid = fd, pid
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + DEADLINE
        while text not in self.seen:
            readable, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, self.seen
            self.seen += os.read(self.fd, 4096)
        self.seen = self.seen.partition(text)[2]

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextlib.contextmanager
def on_a_terminal(*words: str) -> Iterator[Screen]:
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*LINE, *words], os.environ | {"TERM": "vt220"})
    try:
        yield Screen(fd, pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(fd)


def test_a_shell_has_a_terminal_of_the_windows_size_and_is_left_by_the_escape(reached: Reached) -> None:
    reached()
    with on_a_terminal("ssh", "a") as screen:
        prompt = b"# " if os.geteuid() == 0 else b"$ "
        screen.resize(33, 101)
        screen.until(prompt)
        screen.type(b"echo is-$TERM; stty size\r")
        screen.until(b"is-vt220\r\n")
        screen.until(b"33 101\r\n")
        screen.resize(20, 70)
        screen.type(b"until test \"$(stty size)\" = '20 70'; do :; done; echo re''sized\r")
        screen.until(b"resized\r\n")
        screen.type(b"sh -c \"echo be''gun; exec cat\"\r")
        screen.until(b"begun\r\n")
        screen.type(b"\x03")  # Ctrl-C is the guest's
        screen.until(prompt)  # what is typed before goes with what was interrupted
        screen.type(b"echo sti''ll\r")
        screen.until(b"still\r\n")
        screen.type(b"\r~.")
        screen.until(b"left a")
        assert os.waitstatus_to_exitcode(os.waitpid(screen.pid, 0)[1]) == 255


def test_a_terminal_is_given_back_as_it_was(reached: Reached) -> None:
    reached()
    with on_a_terminal("exec", "a", "--tty", "--", "sh", "-c", "test -t 0; echo $?; exec cat") as screen:
        before = termios.tcgetattr(screen.fd)
        screen.until(b"0\r\n")
        assert not termios.tcgetattr(screen.fd)[3] & termios.ICANON
        screen.type(b"\x04")
        assert os.waitstatus_to_exitcode(os.waitpid(screen.pid, 0)[1]) == 0
        assert termios.tcgetattr(screen.fd)[:4] == before[:4]


@pytest.mark.parametrize("cut", [1, 2, 100])
def test_the_tilde_is_an_escape_at_a_lines_beginning_only(cut: int) -> None:
    def read(typed: bytes) -> tuple[bytes, bool]:
        escape = TildeEscape()
        return b"".join(escape.read(typed[at : at + cut]) for at in range(0, len(typed), cut)), escape.left

    assert read(b"~~x\r~~.") == (b"~x\r~.", False)
    assert read(b"a~.") == (b"a~.", False)
    assert read(b"~a~.") == (b"~a~.", False)
    assert read(b"ls\r~.") == (b"ls\r", True)


@pytest.mark.slow
def test_a_gigabyte_either_way_takes_little_memory(reached: Reached) -> None:
    reached()
    size = 1 << 30
    with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as source:
        process = subprocess.Popen([*LINE, "exec", "a", "--", "cat"], stdin=source.stdout, stdout=subprocess.PIPE)
        assert process.stdout is not None
        arrived = 0
        while data := process.stdout.read(1 << 20):
            arrived += len(data)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, arrived) == (0, size)
    assert used.ru_maxrss < 128 << 10  # KiB
