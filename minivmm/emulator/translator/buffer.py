"""The translation buffer: memory that is written through one mapping and executed through another.

No page is writable and executable at once (W^X): the same pages of a memfd are mapped twice, once to be written and
once to be executed. The hart's thread alone writes, while it is not in translated code.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Callable

from minivmm.errors import HostError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value
_DISPLACEMENT = struct.Struct("<i")  # of a relative jump, from its own end
ALIGNMENT = 32  # bytes: where a block begins; with what processors fetch at once, loops are a tenth faster than with 16


class CodeBuffer:
    """`size` bytes for machine code. Raises HostError when the host allows no executable memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        """Bytes from the start that hold code."""
        try:
            fd = os.memfd_create("vtk-translated", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, size)
                self._writable = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                executable = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED, fd, 0)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError("no memory for translated code", cause=error.strerror or str(error)) from error
        if executable in (None, _FAILED):
            self._writable.close()
            raise HostError(
                "the host gives no executable memory for translated code",
                cause=os.strerror(ctypes.get_errno()),
                remedy="--accel interpret",
            )
        self.address = int(executable)
        """Where the code is executed."""

    @property
    def room(self) -> int:
        """Bytes that are free."""
        return self.size - self.used

    def append(self, code: bytes | bytearray) -> int:
        """Puts code behind what is there, aligned; returns its offset. There must be room."""
        start = self.used
        self._writable[start : start + len(code)] = code
        self.used = start + len(code) + ALIGNMENT - 1 & ~(ALIGNMENT - 1)
        return start

    def redirect(self, at: int, target: int) -> None:
        """Makes the relative jump whose displacement is at offset `at` go to offset `target`."""
        _DISPLACEMENT.pack_into(self._writable, at, target - at - 4)

    def target_of(self, at: int) -> int:
        """Where the relative jump whose displacement is at offset `at` goes."""
        return at + 4 + int(_DISPLACEMENT.unpack_from(self._writable, at)[0])

    def reset(self, keep: int) -> None:
        """Forgets all code but the first `keep` bytes."""
        self.used = keep

    def function(self, offset: int, *parameters: type) -> Callable[..., None]:
        """The code at `offset` as a function that lets other threads of Python go on while it runs."""
        return ctypes.CFUNCTYPE(None, *parameters)(self.address + offset)

    def close(self) -> None:
        """Gives the memory back: nobody may be executing it."""
        self._writable.close()
        _libc.munmap(self.address, self.size)
