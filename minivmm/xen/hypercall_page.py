"""The page whose entry N makes hypercall N (xen.h): the hypervisor's to fill, 32 bytes an entry."""

from __future__ import annotations

from functools import cache

from minivmm.memory import PAGE_SIZE
from minivmm.xen.hypercall_abi import Hypercall

ENTRY_SIZE = 32
ENTRIES = PAGE_SIZE // ENTRY_SIZE
UD2 = b"\x0f\x0b"
SYSCALL = b"\x0f\x05"
RET = b"\xc3"
PUSH_CONTEXT = b"\x51\x41\x53\x50"  # push rcx; push r11; push rax


@cache
def hypercall_page() -> bytes:
    """`mov eax, N; syscall; ret`, filled up with ud2. The entry of `iret` is jumped to: it pushes RCX, R11 and RAX, the
    first words of the iret_context."""
    page = bytearray(UD2 * (PAGE_SIZE // 2))
    for number in range(ENTRIES):
        load = b"\xb8" + number.to_bytes(4, "little")  # mov eax, number
        code = PUSH_CONTEXT + load + SYSCALL if number == Hypercall.IRET else load + SYSCALL + RET
        page[number * ENTRY_SIZE : number * ENTRY_SIZE + len(code)] = code
    return bytes(page)
