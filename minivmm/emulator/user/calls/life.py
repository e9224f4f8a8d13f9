"""The end, time, who one is; and signals and threads, of which there is little: one thread, and signals end it."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from minivmm.emulator.user.abi import (
    FUTEX_COMMAND_MASK,
    FUTEX_WAIT,
    FUTEX_WAKE,
    NANOSECONDS,
    RLIMIT,
    RUSAGE,
    SYSINFO,
    TIMESPEC,
    TMS,
    UTSNAME_FIELD,
    SystemCall,
)
from minivmm.emulator.user.calls.table import failure, signed, system_call
from minivmm.emulator.user.files import MAX_FILES
from minivmm.emulator.user.loading import CLOCK_TICKS, IDENTITY
from minivmm.outcome import EndOfRun, Outcome

if TYPE_CHECKING:
    from minivmm.emulator.user.process import Process

PID = 1
PR_SET_NAME = 15
SIGNALS = 65
SIGSET_SIZE = 8  # bytes of sigset_t
SIGACTION_SIZE = 24  # bytes: riscv has no sa_restorer


@system_call(SystemCall.EXIT, SystemCall.EXIT_GROUP)
def _exit(_process: Process, status: int) -> int:
    code = status & 0xFF
    raise EndOfRun(Outcome.EXITED if code else Outcome.SHUTDOWN, f"exit status {code}", code)


@system_call(SystemCall.KILL, SystemCall.TKILL)
def _kill(process: Process, pid: int, signal: int) -> int:
    if signed(pid) not in (PID, 0, -1):
        raise failure(errno.ESRCH)
    return _tgkill(process, pid, pid, signal)


@system_call(SystemCall.TGKILL)
def _tgkill(process: Process, _group: int, _thread: int, signal: int) -> int:
    if signal:
        process.die(signal & 0x7F, "sent by itself")
    return 0


@system_call(SystemCall.CLOCK_GETTIME)
def _clock_gettime(process: Process, clock: int, address: int) -> int:
    process.store(address, TIMESPEC.pack(*divmod(time.clock_gettime_ns(signed(clock)), NANOSECONDS)))
    return 0


@system_call(SystemCall.CLOCK_GETRES)
def _clock_getres(process: Process, clock: int, address: int) -> int:
    if address:
        process.store(address, TIMESPEC.pack(*divmod(int(time.clock_getres(signed(clock)) * NANOSECONDS), NANOSECONDS)))
    return 0


@system_call(SystemCall.GETTIMEOFDAY)
def _gettimeofday(process: Process, address: int) -> int:
    seconds, nanoseconds = divmod(time.time_ns(), NANOSECONDS)
    process.store(address, TIMESPEC.pack(seconds, nanoseconds // 1000))
    return 0


@system_call(SystemCall.NANOSLEEP)
def _nanosleep(process: Process, address: int) -> int:
    seconds, nanoseconds = TIMESPEC.unpack(process.memory.read(address, TIMESPEC.size))
    if seconds < 0 or not 0 <= nanoseconds < NANOSECONDS:
        raise failure(errno.EINVAL)
    process.sleep(seconds + nanoseconds / NANOSECONDS)
    return 0


@system_call(SystemCall.CLOCK_NANOSLEEP)
def _clock_nanosleep(process: Process, clock: int, flags: int, address: int) -> int:
    if not flags & 1:
        return _nanosleep(process, address)
    seconds, nanoseconds = TIMESPEC.unpack(process.memory.read(address, TIMESPEC.size))  # TIMER_ABSTIME
    process.sleep(seconds + nanoseconds / NANOSECONDS - time.clock_gettime(signed(clock)))
    return 0


@system_call(SystemCall.UNAME)
def _uname(process: Process, address: int) -> int:
    names = ("Linux", "vtk", "6.1.0", "#1 vtk", "riscv64", "(none)")
    process.store(address, b"".join(name.encode().ljust(UTSNAME_FIELD, b"\0") for name in names))
    return 0


@system_call(SystemCall.GETRANDOM)
def _getrandom(process: Process, buffer: int, count: int) -> int:
    data = os.urandom(min(count, 256))
    process.store(buffer, data)
    return len(data)


@system_call(SystemCall.GETPID, SystemCall.GETTID, SystemCall.SET_TID_ADDRESS)
def _getpid(_process: Process) -> int:
    return PID


@system_call(SystemCall.GETPPID)
def _getppid(_process: Process) -> int:
    return 0


@system_call(SystemCall.GETUID, SystemCall.GETEUID, SystemCall.GETGID, SystemCall.GETEGID)
def _identity(_process: Process) -> int:
    return IDENTITY


@system_call(SystemCall.UMASK)
def _umask(_process: Process) -> int:
    return 0o022


@system_call(SystemCall.PRLIMIT64)
def _prlimit64(process: Process, _pid: int, resource: int, _new: int, old: int) -> int:
    stack, files = 3, 7
    unlimited = (1 << 64) - 1
    if old:
        soft = {stack: process.stack_size, files: MAX_FILES}.get(resource, unlimited)
        process.store(old, RLIMIT.pack(soft, soft))
    return 0


@system_call(SystemCall.SYSINFO)
def _sysinfo(process: Process, address: int) -> int:
    total = process.ram_size
    free = max(total - process.memory.used, 0)
    process.store(address, SYSINFO.pack(1, 0, 0, 0, total, free, 0, 0, 0, 0, 1, 0, 0, 0, 1))
    return 0


@system_call(SystemCall.GETRUSAGE)
def _getrusage(process: Process, _who: int, address: int) -> int:
    spent = os.times()
    times = (part for time_ in (spent.user, spent.system) for part in divmod(int(time_ * 1e6), 1_000_000))
    process.store(address, RUSAGE.pack(*times))
    return 0


@system_call(SystemCall.TIMES)
def _times(process: Process, address: int) -> int:
    spent = os.times()
    if address:
        process.store(address, TMS.pack(int(spent.user * CLOCK_TICKS), int(spent.system * CLOCK_TICKS), 0, 0))
    return int(spent.elapsed * CLOCK_TICKS)


@system_call(SystemCall.SCHED_GETAFFINITY)
def _affinity(process: Process, _pid: int, size: int, mask: int) -> int:
    if size < 8:
        raise failure(errno.EINVAL)
    process.store(mask, (1).to_bytes(8, "little"))
    return 8


@system_call(SystemCall.FUTEX)
def _futex(process: Process, address: int, operation: int, value: int) -> int:
    match operation & FUTEX_COMMAND_MASK:
        case operation if operation == FUTEX_WAKE:
            return 0  # nobody waits
        case operation if operation == FUTEX_WAIT:
            if int.from_bytes(process.memory.read(address, 4), "little") != value & 0xFFFF_FFFF:
                raise failure(errno.EAGAIN)
            raise failure(errno.EDEADLK)  # nobody would ever wake it
    raise failure(errno.ENOSYS)


@system_call(SystemCall.SETUID, SystemCall.SETGID)
def _become(_process: Process, identity: int) -> int:
    if identity != IDENTITY:
        raise failure(errno.EPERM)
    return 0


@system_call(SystemCall.GETGROUPS)
def _getgroups(_process: Process) -> int:
    return 0


@system_call(SystemCall.GETPGID, SystemCall.GETSID)
def _group(_process: Process, pid: int) -> int:
    if pid not in (0, PID):
        raise failure(errno.ESRCH)
    return PID


@system_call(SystemCall.SETPGID, SystemCall.SETSID)
def _new_group(_process: Process) -> int:
    raise failure(errno.EPERM)  # it leads its session


@system_call(SystemCall.WAIT4)
def _wait4(_process: Process) -> int:
    raise failure(errno.ECHILD)


@system_call(SystemCall.PRCTL)
def _prctl(_process: Process, option: int) -> int:
    if option != PR_SET_NAME:
        raise failure(errno.EINVAL)
    return 0


@system_call(SystemCall.RSEQ, SystemCall.RISCV_HWPROBE)
def _optional(_process: Process) -> int:
    """C libraries ask when they start, and do without."""
    raise failure(errno.ENOSYS)


@system_call(SystemCall.SET_ROBUST_LIST, SystemCall.SIGALTSTACK, SystemCall.SCHED_YIELD)
def _accepted(_process: Process) -> int:
    return 0


@system_call(SystemCall.RT_SIGACTION)
def _rt_sigaction(process: Process, signal: int, new: int, old: int, size: int) -> int:
    if size != SIGSET_SIZE or not 0 < signal < SIGNALS:
        raise failure(errno.EINVAL)
    if old:
        process.store(old, process.signal_actions.get(signal, bytes(SIGACTION_SIZE)))
    if new:
        process.signal_actions[signal] = process.memory.read(new, SIGACTION_SIZE)
    return 0


@system_call(SystemCall.RT_SIGPROCMASK)
def _rt_sigprocmask(process: Process, _how: int, _new: int, old: int, size: int) -> int:
    if size != SIGSET_SIZE:
        raise failure(errno.EINVAL)
    if old:
        process.store(old, bytes(SIGSET_SIZE))
    return 0
