"""One QEMU microvm, driven: the verbs of `minivmm.Machine`, the same outcomes, another hypervisor underneath.

    with QemuMachine(image("hello"), accelerator=Accelerator.TCG) as machine:
        result = machine.run(timeout=10)

A background thread runs the asyncio loop of qemu.qmp and everything that watches the process (its end, its
deadline, its words); a second one carries the console. The public methods are synchronous and may be called from
any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from qemu.qmp import (
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from minivmm.errors import ConfigError
from minivmm.outcome import Outcome, RunResult
from toolkit.qemu.console import SerialLine
from toolkit.qemu.ending import Ending, complaints, ending
from toolkit.qemu.errors import QemuError, QemuMissing
from toolkit.qemu.find import INSTALL, find_qemu
from toolkit.qemu.microvm import Accelerator, DiskLike, Microvm, Shape
from toolkit.qemu.process import QemuProcess

CONNECT_TIMEOUT = 20.0  # seconds for QEMU to answer on QMP; 0.06 on an idle machine
COMMAND_TIMEOUT = 20.0  # seconds for one QMP command
KILL_AFTER = 2.0  # seconds between SIGTERM and SIGKILL
CONSOLE_TIMEOUT = 5.0  # seconds the console's consumer has to take the last output
IDLE_PERIOD = 1.0  # seconds without CPU time after which the vCPUs are looked at
IDLE_TICKS = 2  # clock ticks (10 ms) a period may use and still be idle
IF = 1 << 9  # RFLAGS.IF (SDM 1 3.4.3.3)

T = TypeVar("T")


class QemuMachine:
    """A microvm that runs once. Raises nothing until `start`, but for a configuration that cannot be."""

    def __init__(
        self,
        image: str | Path,
        *,
        memory: int = 64 << 20,
        cpus: int = 1,
        cmdline: str = "",
        disks: Sequence[DiskLike] = (),
        console: Callable[[bytes], None] | None = None,
        virtio_console: bool = False,
        rng: bool = False,
        accelerator: Accelerator = Accelerator.TCG,
        paused: bool = True,
    ) -> None:
        """`console` is called with serial output as it comes, on a thread of the machine's; an exception it raises
        comes out of `wait`. `paused=False` lets the guest run before QMP answers: sooner, but a reset and a panic
        may go unexplained.
        """
        shape = Microvm(
            Path(image), accelerator, memory, cpus, cmdline, tuple(disks), virtio_console=virtio_console, rng=rng
        )
        self._prepare(shape, console, paused)

    @classmethod
    def shaped(
        cls, shape: Shape, *, console: Callable[[bytes], None] | None = None, paused: bool = True
    ) -> QemuMachine:
        """A machine of another shape than a microvm, driven by the same verbs."""
        machine = cls.__new__(cls)
        machine._prepare(shape, console, paused)
        return machine

    def _prepare(self, shape: Shape, console: Callable[[bytes], None] | None, paused: bool) -> None:
        shape.check()
        self.config = shape
        self._paused = paused
        self._sink = console
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._process: QemuProcess | None = None
        self._lines: list[SerialLine] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._qmp = QMPClient("vtk")
        self._events: list[dict[str, Any]] = []
        self._asked: Ending | None = None
        self._result: RunResult | None = None
        self._fault: Exception | None = None
        self._done = threading.Event()
        self._stats: dict[str, int] = {}
        self._closed = False

    def __enter__(self) -> QemuMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, timeout: float = 60.0) -> RunResult:
        """start() and wait()."""
        self.start(timeout)
        return self.wait()

    @property
    def pid(self) -> int | None:
        """QEMU's process; None before `start`."""
        return self._process.pid if self._process is not None else None

    def start(self, timeout: float = 60.0) -> None:
        """Starts QEMU and the guest, which may run for `timeout` seconds.

        Raises QemuMissing, or QemuError with QEMU's own words when it does not start.
        """
        if self._thread is not None or self._closed:
            raise ConfigError("this machine has run: a QemuMachine runs once")
        binary = find_qemu(self.config.target)
        accelerator = self.config.accelerator.value
        if accelerator not in binary.accelerators:
            raise QemuMissing(
                f"{binary.path} has no accelerator {accelerator}",
                cause=f"it was built with {', '.join(binary.accelerators)}",
                remedy=INSTALL[binary.target],
            )
        self._thread = threading.Thread(target=self._run_loop, name="vtk-qemu", daemon=True)
        self._thread.start()
        launch = asyncio.run_coroutine_threadsafe(self._launch(binary.path, timeout), self._loop)
        try:
            launch.result()
        except BaseException:  # Ctrl-C too, in the midst of it: its end is waited for, or asyncio would tell of it
            self.stop()
            wait([launch], CONNECT_TIMEOUT)
            self.close()
            raise

    def wait(self) -> RunResult:
        """Blocks until the machine has ended, at the latest at its deadline, and says how. Ctrl-C in the waiting thread
        ends it as INTERRUPTED.
        """
        if self._process is None:
            raise ConfigError("this machine has not been started", remedy="machine.start()")
        try:
            self._done.wait()
        except KeyboardInterrupt:
            self.stop("interrupted from the keyboard")
            self._done.wait()
        for failure in (self._fault, *(line.failure for line in self._lines)):
            if failure is not None:
                raise failure
        assert self._result is not None
        return self._result

    def stop(self, detail: str = "stopped by the caller") -> None:
        """Ends the machine, with the outcome INTERRUPTED unless it has one. Thread-safe; returns at once."""
        self._end(Ending(Outcome.INTERRUPTED, detail))

    def send(self, data: bytes) -> None:
        """Bytes for the guest's serial input. Raises BufferError when a guest that does not read has 1 MiB waiting."""
        if self._lines:
            self._lines[0].send(data)

    @property
    def pending_input(self) -> int:
        """Bytes sent that QEMU has not taken yet. It takes no more than its guest's receiver has room for."""
        return self._lines[0].pending if self._lines else 0

    @property
    def exits(self) -> dict[str, int]:
        """KVM exits over all vCPUs as KVM counted them up to now, those it answered itself included: `total`, and by
        reason where this back end tells reasons apart. Empty under TCG, which has no exits, and on QEMU before 7.1.
        After the end: the last ones asked for.
        """
        return _exits(self.kernel_stats())

    def kernel_stats(self) -> dict[str, int]:
        """KVM's own counters summed over the vCPUs, by QMP's query-stats; {} where there are none."""
        if self.config.accelerator is Accelerator.KVM and self._thread is not None and not self._done.is_set():
            with contextlib.suppress(QemuError):
                answer = self.execute("query-stats", target="vcpu")
                self._stats = _sum_stats(answer)
        return dict(self._stats)

    def execute(self, command: str, **arguments: object) -> Any:
        """One QMP command and its answer. Raises QemuError with QEMU's description of what was wrong."""
        try:
            return self._call(self._qmp.execute(command, arguments or None), COMMAND_TIMEOUT)
        except ExecuteError as error:
            raise QemuError(f"QEMU refuses {command}", str(error)) from error
        except (QMPError, TimeoutError) as error:
            raise QemuError(f"QEMU does not answer {command}", str(error) or "it has ended") from error

    def close(self) -> None:
        """Ends what still runs and gives everything back: process, threads, descriptors. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._thread is not None:
            if self._process is not None:
                self.stop()
                self._done.wait()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        for line in self._lines:
            line.close()
        self._loop.close()

    # On the loop's thread from here on.

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, T], timeout: float | None) -> T:
        """Runs a coroutine on the loop's thread and waits for it here."""
        if self._thread is None or not self._thread.is_alive():
            work.close()
            raise QemuError("the machine does not run")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    async def _launch(self, binary: str, timeout: float) -> None:
        with contextlib.ExitStack() as theirs:
            qmp, qmp_theirs = socket.socketpair()
            theirs.callback(qmp_theirs.close)
            ends = []
            for _ in range(1 + self.config.virtio_console):
                ours, other = socket.socketpair()
                theirs.callback(other.close)
                self._lines.append(SerialLine(ours, self._sink, self._console_ended))
                ends.append(other.fileno())
            arguments = self.config.arguments(
                binary,
                qmp=qmp_theirs.fileno(),
                serial=ends[0],
                hvc=ends[1] if len(ends) > 1 else None,
                paused=self._paused,
            )
            self._consoles, self._greeted = asyncio.Semaphore(0), asyncio.Event()
            self._began = time.monotonic()
            try:
                self._process = QemuProcess(arguments, [qmp_theirs.fileno(), *ends, *self.config.inherited])
            except OSError as error:
                qmp.close()
                raise QemuError("QEMU cannot be started", str(error)) from error
        self._supervisor = asyncio.create_task(self._supervise(timeout))
        limit = Ending(Outcome.DEADLINE, f"still running after {timeout:g} seconds")
        self._deadline = self._loop.call_later(timeout + CONNECT_TIMEOUT * self._paused, self._end, limit)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._qmp.connect(qmp)
        except (QMPError, TimeoutError) as error:
            qmp.close()
            if isinstance(error, TimeoutError):
                self._process.kill()
            self._greeted.set()
            await self._supervisor
            words = complaints(self._process.words)
            if self._paused or words:
                raise QemuError("QEMU did not start", words or str(error)) from error
            return
        finally:
            self._greeted.set()
        if self._paused:
            self._began = time.monotonic()
            self._deadline.cancel()
            self._deadline = self._loop.call_later(timeout, self._end, limit)
            with contextlib.suppress(ExecInterruptedError, StateError):  # a short guest ends QEMU before it answers
                await self._qmp.execute("cont")

    async def _supervise(self, timeout: float) -> None:
        """From the start of the process to the result. Whatever happens, whoever waits for it is let go."""
        try:
            self._result = await self._follow(timeout)
        except Exception as fault:  # noqa: BLE001 - a fault of ours: wait() raises it where it can be seen
            self._fault = fault
        finally:
            self._done.set()

    async def _follow(self, timeout: float) -> RunResult:
        assert self._process is not None
        watchers = [asyncio.create_task(self._follow_events()), asyncio.create_task(self._watch_for_halt())]
        returncode = await self._process.ended()
        seconds = time.monotonic() - self._began
        self._deadline.cancel()
        await self._greeted.wait()
        await self._hang_up()
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        self._events += [dict(event) for event in self._qmp.events.clear()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(CONSOLE_TIMEOUT, timeout - seconds)):
                for _ in self._lines:
                    await self._consoles.acquire()
        outcome, detail, code = ending(self._events, returncode, self._process.words, self._asked, self.config.target)
        console = b"".join(line.output for line in self._lines)
        return RunResult(outcome, detail, code, console=console, seconds=seconds, exits=_exits(self._stats))

    async def _hang_up(self) -> None:
        """Ends the QMP connection after its last event has been read. QEMU being gone, that it hung up is no news."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONSOLE_TIMEOUT):
                while self._qmp.runstate is Runstate.RUNNING:
                    await self._qmp.runstate_changed()
        if self._qmp.runstate is not Runstate.IDLE:
            with contextlib.suppress(EOFError, OSError, QMPError):
                await self._qmp.disconnect()

    async def _follow_events(self) -> None:
        events: EventListener = self._qmp.events
        async for event in events:
            self._events.append(dict(event))
            if event.get("event") == "STOP" and self._asked is None:
                await self._explain_stop()

    async def _explain_stop(self) -> None:
        """QEMU stopped the guest by itself: find out why, and end the machine when it will not go on."""
        assert self._process is not None
        with contextlib.suppress(QMPError):
            answer = await self._qmp.execute("query-status")
            if isinstance(answer, dict) and answer.get("status") == "internal-error":
                words = complaints(self._process.words)
                refused = "entry failed" in words
                self._end(Ending(Outcome.FAIL_ENTRY if refused else Outcome.INTERNAL_ERROR, words))

    async def _watch_for_halt(self) -> None:
        """Ends a machine in which every vCPU halted with interrupts off.

        Costs a running guest nothing: its registers are read only once it has used no CPU time for a whole period,
        and once in each such pause.
        """
        assert self._process is not None
        before, looked = self._process.cpu_ticks(), False
        while True:
            await asyncio.sleep(IDLE_PERIOD)
            now = self._process.cpu_ticks()
            idle = now - before <= IDLE_TICKS
            before = now
            if idle and not looked and self._qmp.runstate is Runstate.RUNNING:
                with contextlib.suppress(QMPError):
                    text = await self._qmp.execute("human-monitor-command", {"command-line": "info registers -a"})
                    if _all_halted(str(text)):
                        self._end(Ending(Outcome.HALTED, "every vCPU is in hlt with interrupts off"))
            looked = idle

    def _end(self, asked: Ending) -> None:
        """Ends the process for the reason given, unless one was given before. Thread-safe."""
        if not self._done.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._terminate, asked)

    def _terminate(self, asked: Ending) -> None:
        if self._process is None or self._asked is not None:
            return
        self._asked = asked
        self._process.terminate()
        self._loop.call_later(KILL_AFTER, self._process.kill)

    def _console_ended(self) -> None:
        """Called on a console's own thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._consoles.release)


def _all_halted(registers: str) -> bool:
    """Whether HMP's `info registers -a` shows every CPU in hlt with interrupts off."""
    flags = re.findall(r"[RE]FL=([0-9a-f]+)", registers)
    halts = re.findall(r"HLT=([01])", registers)
    return bool(flags) and all(halt == "1" for halt in halts) and not any(int(text, 16) & IF for text in flags)


def _sum_stats(answer: Any) -> dict[str, int]:
    """The scalar counters of a query-stats answer, summed over its vCPUs; histograms are left out."""
    total: dict[str, int] = {}
    for entry in answer:
        for stat in entry.get("stats", ()):
            if isinstance(value := stat.get("value"), int):
                total[stat["name"]] = total.get(stat["name"], 0) + value
    return total


def _exits(stats: dict[str, int]) -> dict[str, int]:
    """The exit counters among KVM's statistics, by minivmm's names; those at 0 are left out."""
    named = {"total": stats.get("exits", 0)} | {
        name.removesuffix("_exits"): count for name, count in stats.items() if name.endswith("_exits")
    }
    return {name: count for name, count in named.items() if count}
