"""A minivmm machine in a test: it runs while the test talks to its serial port, and ends with it."""

from __future__ import annotations

import functools
import re
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivmm import Machine, RunResult, XenMachine
from minivmm.errors import VtkError
from minivmm.tail import Tail
from toolkit.vm.errors import Unfinished
from toolkit.vm.waiting import SHOWN_LINES, compiled

if TYPE_CHECKING:
    from toolkit.pytest_plugin import Shown

RUN_TIMEOUT = 60.0  # seconds a machine runs at most
EXPECT_TIMEOUT = 10.0
END_TIMEOUT = 10.0  # seconds a machine takes to end once it was told to; it is over in milliseconds
KEPT = 1 << 20  # bytes of output for the report, and of output in which nothing was expected yet


class GuestMachine:
    """A guest that runs. `machine` is minivmm's own."""

    def __init__(self, image: str | Path, *, timeout: float, xen: bool, options: dict[str, Any]) -> None:
        self.name = Path(image).stem
        self._changed = threading.Condition()
        self._log = Tail(KEPT)
        self._unseen = bytearray()  # what no expect() has passed yet
        self._received = 0  # bytes in all: `_unseen` are the last of them
        self._result: RunResult | None = None
        self._failure: BaseException | None = None
        self.machine = (XenMachine if xen else Machine)(image, console=self._take, **options)
        try:
            self.machine.start(timeout)
        except BaseException:
            self.machine.close()
            raise
        self._waiter = threading.Thread(target=self._wait, name=f"vtk-{self.name}", daemon=True)
        self._waiter.start()

    def send(self, data: str | bytes) -> None:
        """Bytes for the guest's console, text as UTF-8."""
        self.machine.send(data.encode() if isinstance(data, str) else data)

    def expect(self, pattern: str | bytes, timeout: float = EXPECT_TIMEOUT) -> re.Match[bytes]:
        """Waits until the guest has shown what the regular expression matches, after what was expected before.

        Raises Unfinished at the deadline, or when the machine has ended without showing it.
        """
        wanted = compiled(pattern) if isinstance(pattern, str) else re.compile(pattern)
        deadline = time.monotonic() + timeout
        while True:
            with self._changed:
                text, received, ended = bytes(self._unseen), self._received, not self.running
            # Outside the lock: the guest's output is not held up by a long search.
            if found := wanted.search(text):
                self._pass(received - len(text) + found.end())
                return found
            left = deadline - time.monotonic()
            if ended or left <= 0:
                raise self._not_shown(wanted, timeout, ended)
            with self._changed:
                self._changed.wait_for(functools.partial(self._goes_on_from, received), left)

    def wait(self) -> RunResult:
        """How it ended: waits at most until its deadline, which is an outcome as well."""
        self._waiter.join()
        if self._failure is not None:
            raise self._failure
        assert self._result is not None
        return self._result

    def close(self) -> None:
        """Ends it if it still runs. Raises Unfinished when it does not end, which is a fault of minivmm."""
        self.machine.stop("the test has ended")
        self._waiter.join(END_TIMEOUT)
        if self._waiter.is_alive():
            raise Unfinished(f"guest {self.name!r} has not ended within {END_TIMEOUT:g} s", cause="a vCPU hangs")
        self.machine.close()

    @property
    def running(self) -> bool:
        return self._result is None and self._failure is None

    @property
    def title(self) -> str:
        return f"guest {self.name!r} ({self._standing()})"

    @property
    def console(self) -> str:
        with self._changed:
            return bytes(self._log).decode(errors="replace")

    def _standing(self) -> str:
        if self._result is not None:
            detail = f": {self._result.detail}" if self._result.detail else ""
            return f"{self._result.outcome.value}{detail}"
        return "running" if self._failure is None else str(self._failure)

    def _not_shown(self, wanted: re.Pattern[bytes], timeout: float, ended: bool) -> Unfinished:
        pattern = wanted.pattern.decode(errors="replace")
        message = f"guest {self.name!r}: no {pattern!r} within {timeout:g} s"
        if ended:
            message = f"guest {self.name!r} has ended without {pattern!r}"
        last = self.console.splitlines()[-SHOWN_LINES:]
        told = f"it is {self._standing()}" + ("; its console's last lines:" if last else ", its console is empty")
        return Unfinished(message, cause="\n         ".join([told, *last]))

    def _take(self, data: bytes) -> None:
        """On a vCPU's thread."""
        with self._changed:
            self._log.write(data)
            self._unseen += data
            del self._unseen[:-KEPT]
            self._received += len(data)
            self._changed.notify_all()

    def _pass(self, position: int) -> None:
        """The output's bytes up to `position`, counted from its beginning, have been expected."""
        with self._changed:
            begin = self._received - len(self._unseen)
            del self._unseen[: max(position - begin, 0)]

    def _goes_on_from(self, received: int) -> bool:
        return self._received != received or not self.running

    def _wait(self) -> None:
        try:
            self._result = self.machine.wait()
        except (VtkError, OSError) as error:
            self._failure = error
        with self._changed:
            self._changed.notify_all()


class Guests:
    """The fixture `vtk_machine`."""

    def __init__(self, shown: list[Shown]) -> None:
        self._shown = shown
        self._started: list[GuestMachine] = []

    def __call__(
        self, image: str | Path, *, timeout: float = RUN_TIMEOUT, xen: bool = False, **options: Any
    ) -> GuestMachine:
        """Boots a kernel, for at most `timeout` seconds; as a paravirtual domain with `xen`.

        `options` are those of minivmm.Machine (or XenMachine): memory, cpus, cmdline, disks, … Raises as it does.
        """
        guest = GuestMachine(image, timeout=timeout, xen=xen, options=options)
        self._started.append(guest)
        self._shown.append(guest)
        return guest

    def __enter__(self) -> Guests:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as ending:
            for guest in self._started:
                ending.callback(guest.close)
