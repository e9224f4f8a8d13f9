"""Guests of a few bytes that end in each of the ways there are, the same file for minivmm and QEMU (entered by PVH)."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.minivmm.images import CLI, CODE, HLT, SPIN, elf64, exit_with, print_text

XEN_ELFNOTE_PHYS32_ENTRY = 18
NOTE = struct.pack("<III4sI", 4, 4, XEN_ELFNOTE_PHYS32_ENTRY, b"Xen\0", CODE)


def _out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"


# Sends back each byte it gets, waiting for the transmitter as a driver must; q ends it.
_ECHO = (
    b"\x66\xba\xfd\x03"  # poll: mov dx, 0x3fd
    b"\xec\xa8\x01\x74\xf7"  # in al, dx; test al, 1 (data ready); jz poll
    b"\x66\xba\xf8\x03\xec"  # mov dx, 0x3f8; in al, dx
    b"\x3c\x71\x74\x14"  # cmp al, 'q'; je end
    b"\x88\xc3\x66\xba\xfd\x03"  # mov bl, al; wait: mov dx, 0x3fd
    b"\xec\xa8\x20\x74\xf7"  # in al, dx; test al, 0x20 (transmitter empty); jz wait
    b"\x66\xba\xf8\x03\x88\xd8"  # mov dx, 0x3f8; mov al, bl
    b"\xee\xeb\xda"  # out dx, al; jmp poll
) + exit_with(0)

# Answers each byte with the next letter, from a on: what it has counted to is in its memory.
_COUNT = (
    b"\xc6\x05\x00\x00\x20\x00a"  # mov byte [0x200000], 'a'
    b"\x66\xba\xfd\x03"  # poll: mov dx, 0x3fd
    b"\xec\xa8\x01\x74\xf7"  # in al, dx; test al, 1 (data ready); jz poll
    b"\x66\xba\xf8\x03\xec"  # mov dx, 0x3f8; in al, dx
    b"\x66\xba\xfd\x03"  # wait: mov dx, 0x3fd
    b"\xec\xa8\x20\x74\xf7"  # in al, dx; test al, 0x20 (transmitter empty); jz wait
    b"\x66\xba\xf8\x03\xa0\x00\x00\x20\x00"  # mov dx, 0x3f8; mov al, [0x200000]
    b"\xee\xfe\x05\x00\x00\x20\x00\xeb\xd7"  # out dx, al; inc byte [0x200000]; jmp poll
)

# Writes to each page from 2 to 18 MiB, for ever.
_DIRTY = (
    b"\xbf\x00\x00\x20\x00"  # again: mov edi, 2 MiB
    b"\xfe\x07\x81\xc7\x00\x10\x00\x00"  # next: inc byte [edi]; add edi, 4096
    b"\x81\xff\x00\x00\x20\x01\x72\xf0\xeb\xe9"  # cmp edi, 18 MiB; jb next; jmp again
)

CODES = {
    "exit0": print_text(b"bye\n") + exit_with(0),
    "exit3": print_text(b"bye") + exit_with(3),
    "reset": _out(0x64, 0xFE) + SPIN,
    "panic": _out(0x505, 1) + SPIN,
    # lidt of ten zero bytes somewhere in free memory, then an invalid instruction: no handler at any level
    "triple-fault": b"\x0f\x01\x1d\x00\x00\x20\x00\x0f\x0b",
    "halt": CLI + HLT + SPIN,
    "spin": SPIN,
    "echo": print_text(b"ready\n") + _ECHO,
    "count": print_text(b"ready\n") + _COUNT,
    "dirty": print_text(b"ready\n") + _DIRTY,
    "flood": b"\x66\xba\xf8\x03\xb0A\xee\xeb\xfd",  # mov dx, 0x3f8; mov al, 'A'; again: out dx, al; jmp again
}


def write_guest(directory: Path, name: str) -> Path:
    """The file of the guest called `name` in CODES."""
    path = directory / f"{name}.elf"
    path.write_bytes(elf64(CODES[name], note=NOTE))
    return path
