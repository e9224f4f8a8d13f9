"""Linux for riscv64: numbers and structures of system calls (include/uapi/asm-generic/unistd.h and its neighbours; the
architecture has the generic ones throughout)."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag


class SystemCall(IntEnum):
    """include/uapi/asm-generic/unistd.h: those that are answered."""

    GETCWD = 17
    DUP = 23
    DUP3 = 24
    FCNTL = 25
    IOCTL = 29
    MKDIRAT = 34
    UNLINKAT = 35
    SYMLINKAT = 36
    LINKAT = 37
    STATFS = 43
    FSTATFS = 44
    FTRUNCATE = 46
    FACCESSAT = 48
    CHDIR = 49
    FCHMOD = 52
    FCHMODAT = 53
    FCHOWNAT = 54
    FCHOWN = 55
    OPENAT = 56
    CLOSE = 57
    PIPE2 = 59
    GETDENTS64 = 61
    LSEEK = 62
    READ = 63
    WRITE = 64
    READV = 65
    WRITEV = 66
    PREAD64 = 67
    PWRITE64 = 68
    SENDFILE = 71
    PPOLL = 73
    READLINKAT = 78
    NEWFSTATAT = 79
    FSTAT = 80
    FSYNC = 82
    FDATASYNC = 83
    UTIMENSAT = 88
    EXIT = 93
    EXIT_GROUP = 94
    SET_TID_ADDRESS = 96
    FUTEX = 98
    SET_ROBUST_LIST = 99
    NANOSLEEP = 101
    CLOCK_GETTIME = 113
    CLOCK_GETRES = 114
    CLOCK_NANOSLEEP = 115
    SCHED_GETAFFINITY = 123
    SCHED_YIELD = 124
    KILL = 129
    TKILL = 130
    TGKILL = 131
    SIGALTSTACK = 132
    RT_SIGACTION = 134
    RT_SIGPROCMASK = 135
    SETGID = 144
    SETUID = 146
    TIMES = 153
    SETPGID = 154
    GETPGID = 155
    GETSID = 156
    SETSID = 157
    GETGROUPS = 158
    UNAME = 160
    GETRUSAGE = 165
    UMASK = 166
    PRCTL = 167
    GETTIMEOFDAY = 169
    GETPID = 172
    GETPPID = 173
    GETUID = 174
    GETEUID = 175
    GETGID = 176
    GETEGID = 177
    GETTID = 178
    SYSINFO = 179
    BRK = 214
    MUNMAP = 215
    MREMAP = 216
    MMAP = 222
    FADVISE64 = 223
    MPROTECT = 226
    MADVISE = 233
    RISCV_HWPROBE = 258
    WAIT4 = 260
    PRLIMIT64 = 261
    RENAMEAT2 = 276
    GETRANDOM = 278
    RSEQ = 293
    FACCESSAT2 = 439


class Prot(IntFlag):
    """PROT_ of mmap(2)."""

    READ = 1
    WRITE = 2
    EXEC = 4


class Map(IntFlag):
    """MAP_ of mmap(2)."""

    SHARED = 1
    PRIVATE = 2
    FIXED = 0x10
    ANONYMOUS = 0x20
    FIXED_NOREPLACE = 0x100000


class Aux(IntEnum):
    """AT_ of the auxiliary vector (include/uapi/linux/auxvec.h)."""

    NULL = 0
    PHDR = 3
    PHENT = 4
    PHNUM = 5
    PAGESZ = 6
    BASE = 7
    FLAGS = 8
    ENTRY = 9
    UID = 11
    EUID = 12
    GID = 13
    EGID = 14
    HWCAP = 16
    CLKTCK = 17
    SECURE = 23
    RANDOM = 25
    EXECFN = 31


AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_REMOVEDIR = 0x200

STAT = struct.Struct("<QQIIIIQQqiiq6QII")
"""struct stat (include/uapi/asm-generic/stat.h): 128 bytes."""
DIRENT = struct.Struct("<QqHB")
"""struct linux_dirent64 (include/linux/dirent.h), before the name."""
STATFS = struct.Struct("<7Q2i3Q32x")
"""struct statfs (include/uapi/asm-generic/statfs.h): 120 bytes."""
RUSAGE = struct.Struct("<4q112x")
"""struct rusage (include/uapi/linux/resource.h): 144 bytes, of which the times are told."""
TMS = struct.Struct("<4q")
NANOSECONDS = 1_000_000_000  # a second of struct timespec
TIMESPEC = struct.Struct("<qq")
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
IOVEC = struct.Struct("<QQ")
UTSNAME_FIELD = 65  # bytes of each of the six strings of struct new_utsname
SYSINFO = struct.Struct("<q3Q6QHH4x2QI4x")
"""struct sysinfo (include/uapi/linux/sysinfo.h): 112 bytes."""
WINSIZE = struct.Struct("<4H")
RLIMIT = struct.Struct("<QQ")
POLLFD = struct.Struct("<ihh")
TCGETS, TIOCGWINSZ = 0x5401, 0x5413
FUTEX_WAIT, FUTEX_WAKE, FUTEX_COMMAND_MASK = 0, 1, 0x7F
assert STAT.size == 128
