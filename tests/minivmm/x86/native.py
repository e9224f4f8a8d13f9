"""The processor itself as the oracle: one instruction executed in this process, on given registers and flags."""

from __future__ import annotations

import ctypes
import mmap

from minivmm.kvm.abi import kvm_regs

MAP_32BIT = 0x40  # mman.h: so that the memory can be reached with 32-bit addresses too
AREA = 3 * mmap.PAGESIZE

# All but RSP, which stays ours; numbers as in machine code.
_NUMBERS = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rbp": 5, "rsi": 6, "rdi": 7} | {
    f"r{number}": number for number in range(8, 16)
}
_RDI = _NUMBERS["rdi"]
_CALLEE_SAVED = bytes.fromhex("53 55 4154 4155 4156 4157")  # push rbx, rbp, r12, r13, r14, r15
_RESTORED = bytes.fromhex("415f 415e 415d 415c 5d 5b")


def _offset(name: str) -> bytes:
    offset: int = getattr(kvm_regs, name).offset
    return offset.to_bytes(4, "little")


def _move(opcode: int, name: str) -> bytes:
    """mov between the register and its field, which RDI points at."""
    number = _NUMBERS[name]
    return bytes((0x48 | (number >> 3) << 2, opcode, 0x80 | (number & 7) << 3 | _RDI)) + _offset(name)


def _program(instruction: bytes) -> bytes:
    others = [name for name in _NUMBERS if name != "rdi"]
    return b"".join(
        (
            _CALLEE_SAVED,
            b"\x57",  # push rdi: kvm_regs
            b"\xff\xb7" + _offset("rflags"),  # push its rflags
            *(_move(0x8B, name) for name in (*others, "rdi")),
            b"\x9d",  # popfq
            instruction,
            b"\x9c",  # pushfq
            b"\x48\x87\x7c\x24\x08",  # xchg rdi, [rsp + 8]: kvm_regs again
            b"\xfc",  # cld, as the ABI wants it
            *(_move(0x89, name) for name in others),
            b"\x8f\x87" + _offset("rflags"),  # pop into rflags
            b"\x8f\x87" + _offset("rdi"),
            _RESTORED,
            b"\xc3",
        )
    )


class Processor:
    """Executes instructions. `memory` is theirs, `AREA` bytes at `address`."""

    def __init__(self) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._code = mmap.mmap(-1, mmap.PAGESIZE, flags=flags, prot=protection | mmap.PROT_EXEC)
        self.memory = mmap.mmap(-1, AREA, flags=flags | MAP_32BIT, prot=protection)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        entry = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)

    def execute(self, instruction: bytes, regs: kvm_regs) -> None:
        """Runs one instruction, which must touch `memory` only, not RSP, and not jump. `regs` are changed in place."""
        self._code.seek(0)
        self._code.write(_program(instruction))
        self._call(ctypes.addressof(regs))
