"""A machine of `vtk vm` in a test: made for it, reached by its console and by ssh, deleted with its disk at the end.

Its QEMU process would outlive a killed pytest. So a process beside pytest waits for pytest's end, whatever that is, and
ends the machines that are left.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import shutil
import socket
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minivmm.errors import ConfigError, VtkError
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory, Machines
from toolkit.vm.errors import MachineMissing, Unfinished
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB
from toolkit.vm.waiting import wait

if TYPE_CHECKING:
    from toolkit.pytest_plugin import Shown

BOOT_TIMEOUT = 300.0  # seconds; an emulated Debian lets ssh in after 70 on its first boot
COMMAND_TIMEOUT = 60.0
CONSOLE_TIMEOUT = 60.0
END_TIMEOUT = 10.0  # seconds the kernel has to take a killed process down
SWEEPS = 3  # times an end is tried: a process that is just being set up cannot be named yet
SEND_PERIOD = 0.02  # seconds between looks at what has been read
CHUNK = 1 << 16  # bytes
KEPT_LINES = 10_000  # of a console

# Its standard input ends with pytest, however that ends; a byte says that there is nothing left to do.
WATCH = """
import sys
if not sys.stdin.buffer.read(1):
    sys.path.insert(0, sys.argv[1])
    from toolkit.pytest_plugin.linux import sweep
    sweep(sys.argv[2])
"""
PACKAGES = Path(__file__).parents[2]  # where `toolkit` is imported from


class Completed(NamedTuple):
    """A command that has ended."""

    status: int
    stdout: str
    stderr: str


class CommandFailed(VtkError):
    """A command in a machine ended with a status other than 0."""


class LinuxMachine:
    """A machine that runs. `machine` is that of toolkit.vm. Ends with the test, or with its block."""

    def __init__(self, machine: Machine, machines: Machines) -> None:
        self.machine = machine
        self.name = machine.name
        self._machines = machines
        self._last = ""

    def run(
        self,
        command: str,
        *,
        stdin: str = "",
        user: str | None = None,
        check: bool = True,
        timeout: float = COMMAND_TIMEOUT,
        boot_timeout: float = BOOT_TIMEOUT,
    ) -> Completed:
        """Runs a line for the guest user's shell by ssh, once its ssh server answers.

        Raises CommandFailed for a status other than 0 (unless `check` is false), Unfinished at a deadline.
        """
        from toolkit.vm.ssh import execute

        stdout, stderr = bytearray(), bytearray()
        status = execute(
            self.machine,
            command,
            stdout=stdout.extend,
            stderr=stderr.extend,
            stdin=stdin.encode(),
            user=user,
            wait_timeout=boot_timeout,
            timeout=timeout,
        )
        done = Completed(status, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
        if check and status != 0:
            raise CommandFailed(
                f"{command!r} ended with status {status} in machine {self.name!r}",
                cause=(done.stderr or done.stdout).strip(),
            )
        return done

    def wait(self, goal: str, timeout: float = BOOT_TIMEOUT) -> str:
        """As `vtk vm wait`: running, stopped, ssh or console:PATTERN. Raises Unfinished."""
        return wait(self.machine, goal, timeout)

    def expect(self, pattern: str, timeout: float = CONSOLE_TIMEOUT) -> str:
        """Waits until its console has shown, since it was started, what the regular expression matches: the text.

        Raises Unfinished at the deadline, or when the machine has ended without showing it.
        """
        return wait(self.machine, f"console:{pattern}", timeout)

    def send(self, text: str, timeout: float = CONSOLE_TIMEOUT) -> None:
        """Types on its console. Returns when its serial port has taken all; raises Unfinished when it does not."""
        deadline = time.monotonic() + timeout
        with self.machine.console() as connection:
            connection.settimeout(timeout)
            try:
                connection.sendall(text.encode())
                # QEMU drops what it has not read when the connection ends, and reads as the serial port has room.
                while _unread(connection):
                    if time.monotonic() >= deadline:
                        raise TimeoutError
                    if select.select([connection], [], [], SEND_PERIOD)[0]:
                        connection.recv(CHUNK)  # it is in console.log as well
            except OSError as error:
                raise Unfinished(
                    f"machine {self.name!r} has not taken {text!r} from its console within {timeout:g} s",
                    cause=error.strerror or "its guest does not read its serial port",
                    remedy="expect what it shows when it is ready to read",
                ) from error

    def close(self) -> None:
        """Deletes it, whatever it is doing."""
        self._last = self.console
        try:
            with contextlib.suppress(MachineMissing):  # deleted by the test
                self.machine.delete(self._machines, force=True)
        finally:
            end(self.machine.directory)

    @property
    def title(self) -> str:
        return f"machine {self.name!r} ({self.machine.status().state.value})"

    @property
    def console(self) -> str:
        """What its console has shown since its start."""
        return self._last or "\n".join(self.machine.last_lines(KEPT_LINES))

    def __enter__(self) -> LinuxMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LinuxMachines:
    """The fixtures `vtk_vm` and `vtk_vm_factory`: machines of a directory of their own, the images are the user's."""

    def __init__(self, directory: Path, shown: list[Shown]) -> None:
        self._machines = Machines(directory / "machines")
        self._shown = shown
        self._made: list[LinuxMachine] = []
        self._watch: subprocess.Popen[bytes] | None = None

    def __call__(
        self,
        image: str = "",
        *,
        name: str = "",
        kernel: str | Path | None = None,
        initrd: str | Path | None = None,
        append: str = "",
        disk: str | Path | None = None,
        disk_size: int | None = None,
        memory: int = 512 * MIB,
        cpus: int = 1,
        accelerator: str = "auto",
        user: str = "",
    ) -> LinuxMachine:
        """Makes a machine and starts it: on an image of `vtk image list`, or a kernel or disk. Sizes in bytes.

        Raises ConfigError, ImageError, HostError.
        """
        if self._watch is None:
            self._watch = subprocess.Popen(
                [sys.executable, "-c", WATCH, PACKAGES, self._machines.root],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is not for it
            )
        parts = Parts(
            image=image,
            kernel=Path(kernel) if kernel else None,
            initrd=Path(initrd) if initrd else None,
            append=append,
            disk=Path(disk) if disk else None,
            disk_size=disk_size,
            memory=memory,
            cpus=cpus,
            accelerator=accelerator,
            user=user,
        )
        directory = create(self._machines, name or f"vm{len(self._made)}", parts)
        vm = LinuxMachine(Machine(directory), self._machines)
        self._made.append(vm)
        self._shown.append(vm)
        vm.machine.start()
        return vm

    def __enter__(self) -> LinuxMachines:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as ending:
            ending.callback(self._dismiss)
            for vm in self._made:
                ending.callback(vm.close)

    def _dismiss(self) -> None:
        """After the machines' end; when one could not be ended, the watching process tries once more."""
        if self._watch is not None:
            done = b"" if self._machines.names() else b"."
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watch.communicate(done, timeout=END_TIMEOUT)


def _unread(connection: socket.socket) -> int:
    """Of what was sent, how much the other end has not read yet (unix(7), SIOCOUTQ): 0 is nothing."""
    answer = fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4))  # the same number as SIOCOUTQ
    return int.from_bytes(answer, sys.byteorder)


def end(directory: MachineDirectory) -> None:
    """Ends the machine's process. Raises Unfinished when the kernel does not take it down."""
    if not presence.kill(directory, END_TIMEOUT):
        raise Unfinished(
            f"the process of machine {directory.name!r} has not ended within {END_TIMEOUT:g} s",
            cause="it hangs in the kernel, on a disk or a network that does not answer",
        )


def sweep(root: str) -> None:
    """Ends the machines below `root` and deletes what they are made of."""
    machines = Machines(Path(root))
    for name in machines.names() * SWEEPS:
        with contextlib.suppress(ConfigError, Unfinished):  # gone meanwhile; or cannot be helped
            end(machines.get(name))
    shutil.rmtree(root, ignore_errors=True)
