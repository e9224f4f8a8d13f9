"""One QEMU process: started so that it cannot outlive its parent, its last words kept, its end noticed at once.

Belongs to one asyncio loop and is made on that loop's thread: PR_SET_PDEATHSIG fires when the *thread* that started the
process ends (prctl(2)), so that thread must live as long as the machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

WORDS_LIMIT = 64 << 10
"""Bytes of standard error kept, the last ones: a guest can make QEMU complain as often as it likes."""

# What setpriv does, for hosts without util-linux. 1 is PR_SET_PDEATHSIG, 9 is SIGKILL.
_DIE_WITH_PARENT = "import ctypes,os,sys;ctypes.CDLL(None).prctl(1,9);os.execvp(sys.argv[1],sys.argv[1:])"


def dying_with_parent(arguments: Sequence[str]) -> list[str]:
    """The command line that runs `arguments` and has the kernel kill it when the thread that starts it ends."""
    if setpriv := shutil.which("setpriv"):
        return [setpriv, "--pdeathsig", "KILL", "--", *arguments]
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *arguments]


class QemuProcess:
    """The running process. Raises OSError when it cannot be started."""

    def __init__(self, arguments: Sequence[str], inherited: Sequence[int]) -> None:
        """Starts `arguments` with the descriptors `inherited`. Call on the thread of the running loop."""
        self._loop = asyncio.get_running_loop()
        self._words = bytearray()
        self._words_ended = asyncio.Event()
        self._ended = asyncio.Event()
        self._popen = subprocess.Popen(
            dying_with_parent(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=tuple(inherited),
            start_new_session=True,  # the terminal's Ctrl-C is for us, not for QEMU
        )
        self.pid = self._popen.pid
        assert self._popen.stderr is not None
        self._stderr = self._popen.stderr.fileno()
        os.set_blocking(self._stderr, False)
        self._loop.add_reader(self._stderr, self._read_words)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def words(self) -> str:
        """What QEMU wrote to standard error, the last of it."""
        return self._words.decode(errors="replace").strip()

    @property
    def returncode(self) -> int | None:
        """As subprocess gives it: negative for a signal. None while it runs."""
        return self._popen.returncode

    def cpu_ticks(self) -> int:
        """CPU time used so far by all its threads, in clock ticks (proc(5): utime and stime); 0 when it is gone."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            return 0
        return int(fields[11]) + int(fields[12])

    def terminate(self) -> None:
        """Asks it to end: QEMU closes its disks and exits."""
        if self._popen.returncode is None:
            self._popen.terminate()

    def kill(self) -> None:
        """Ends it."""
        if self._popen.returncode is None:
            self._popen.kill()

    async def ended(self) -> int:
        """Waits for the end and for the last words. Returns the return code."""
        await self._ended.wait()
        await self._words_ended.wait()
        return int(self._popen.returncode)

    def _read_words(self) -> None:
        data = os.read(self._stderr, 65536)
        if not data:
            self._loop.remove_reader(self._stderr)
            assert self._popen.stderr is not None
            self._popen.stderr.close()
            self._words_ended.set()
            return
        self._words += data
        del self._words[:-WORDS_LIMIT]

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._popen.wait()
        self._ended.set()
