"""The page whose entry N makes hypercall N (xen.h): the hypervisor's to fill, 32 bytes an entry.

Two ways out of the domain, both ending in `ret` with the result in RAX, RCX and R11 lost as `syscall` loses them:

    plain       mov eax, N; syscall; ret
    exitless    mov eax, N; jmp to the code below, which posts the call in the vCPU's mailbox (mailbox.py) and waits for
                the answer, and leaves by `syscall` when nobody answers

Entries from 64 on are numbers that no hypercall has; the exitless code lies in their place.
"""

from __future__ import annotations

import struct
from functools import cache

from minivmm.memory import PAGE_SIZE
from minivmm.xen.hypercall_abi import Hypercall
from minivmm.xen.mailbox import MAILBOX_VIRT, Field, State

ENTRY_SIZE = 32
ENTRIES = 64  # __HYPERVISOR_arch_7 is the last number there is
COMMON = ENTRIES * ENTRY_SIZE  # offset of the exitless code
UD2 = b"\x0f\x0b"
SYSCALL = b"\x0f\x05"
RET = b"\xc3"
PUSH_CONTEXT = b"\x51\x41\x53\x50"  # push rcx; push r11; push rax
WAIT_TURNS = 1500  # of some 25 ns: about what leaving costs on a software back end


@cache
def plain_page() -> bytes:
    """Every call by `syscall`. The entry of `iret` is jumped to: it pushes RCX, R11 and RAX, the first words of the
    iret_context."""
    return _page([_entry(number, SYSCALL + RET) for number in range(ENTRIES)])


@cache
def exitless_page() -> bytes:
    """Every call but `iret` by the mailbox."""
    jumps = [struct.pack("<Bi", 0xE9, COMMON - (number * ENTRY_SIZE + 10)) for number in range(ENTRIES)]  # jmp COMMON
    return _page([*(_entry(number, jump) for number, jump in enumerate(jumps)), exitless_code()])


def _entry(number: int, way: bytes) -> bytes:
    load = b"\xb8" + number.to_bytes(4, "little")  # mov eax, number
    return PUSH_CONTEXT + load + SYSCALL if number == Hypercall.IRET else load + way


def _page(entries: list[bytes]) -> bytes:
    page = bytearray(UD2 * (PAGE_SIZE // 2))
    for index, code in enumerate(entries):
        page[index * ENTRY_SIZE : index * ENTRY_SIZE + len(code)] = code
    return bytes(page)


def exitless_code() -> bytes:
    """EAX: the number; RDI, RSI, RDX, R10, R8, R9: the arguments; R11 becomes the mailbox's address, RCX counts."""
    take = [
        (b"\x41\x83\x7b" + bytes((Field.OPEN * 8, 0)), "cmp dword [r11 + OPEN], 0"),
        (b"\x74", "je plain           nobody looks into the mailbox"),
        (b"\x41\x83\x3b\x00", "cmp dword [r11 + STATE], 0"),
        (b"\x75", "jne plain          a handler that came in the middle of another call"),
        (_set_state(State.FILLING), "no event comes from here on until STATE is IDLE again"),
        (b"\x49\xff\x43" + bytes((Field.SEQUENCE * 8,)), "inc qword [r11 + SEQUENCE]"),
        (b"\x49\x89\x43" + bytes((Field.NUMBER * 8,)), "mov [r11 + NUMBER], rax"),
        (b"\x49\x89\x7b" + bytes((Field.ARGUMENTS * 8,)), "mov [r11 + ARGUMENTS], rdi"),
        (b"\x49\x89\x73" + bytes((Field.ARGUMENTS * 8 + 8,)), "rsi"),
        (b"\x49\x89\x53" + bytes((Field.ARGUMENTS * 8 + 16,)), "rdx"),
        (b"\x4d\x89\x53" + bytes((Field.ARGUMENTS * 8 + 24,)), "r10"),
        (b"\x4d\x89\x43" + bytes((Field.ARGUMENTS * 8 + 32,)), "r8"),
        (b"\x4d\x89\x4b" + bytes((Field.ARGUMENTS * 8 + 40,)), "r9"),
        (_set_state(State.POSTED), "whoever looks sees a whole call"),
    ]
    wait = [
        (b"\xf3\x90", "again: pause"),
        (b"\x41\x83\x3b" + bytes((State.DONE,)), "cmp dword [r11 + STATE], DONE"),
        (b"\x73\x06", "jae ended          DONE, or LEAVE"),
        (b"\xff\xc9", "dec ecx"),
        (b"\x75\xf4", "jnz again"),
        (b"\xeb", "jmp leave          nobody came"),
    ]
    ended = [
        (b"\x75", "jne leave          LEAVE: the answer waits outside"),
        (b"\x49\x8b\x43" + bytes((Field.RESULT * 8,)), "mov rax, [r11 + RESULT]"),
        (_set_state(State.IDLE), "events may come again"),
        (RET, "RAX: the result"),
    ]
    leave = [
        (b"\x49\x8b\x4b" + bytes((Field.SEQUENCE * 8,)), "mov rcx, [r11 + SEQUENCE]"),
        (b"\x49\x89\x4b" + bytes((Field.LEAVING * 8,)), "mov [r11 + LEAVING], rcx    which call it is that leaves"),
        (b"\x49\x8b\x43" + bytes((Field.NUMBER * 8,)), "mov rax, [r11 + NUMBER]"),
    ]
    plain = SYSCALL + RET
    leave_code = b"".join(code for code, _ in leave)
    end_code = b"".join(code for code, _ in ended[1:])
    ended_code = b"\x75" + bytes((len(end_code),)) + end_code
    wait_code = b"".join(code for code, _ in wait) + bytes((len(ended_code),))
    after = struct.pack("<BI", 0xB9, WAIT_TURNS) + wait_code + ended_code + leave_code  # mov ecx, WAIT_TURNS first
    rest = b""
    for code, _ in reversed(take):
        if code in (b"\x74", b"\x75"):
            code += struct.pack("b", len(rest) + len(after))
        rest = code + rest
    return b"\x49\xbb" + struct.pack("<Q", MAILBOX_VIRT) + rest + after + plain  # mov r11, MAILBOX


def _set_state(state: int) -> bytes:
    """mov dword [r11 + STATE], state"""
    return b"\x41\xc7\x03" + struct.pack("<I", state)
