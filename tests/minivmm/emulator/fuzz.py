"""Random code, translated and executed, in a process of its own: `python -m tests.minivmm.emulator.fuzz SEED BLOCKS`.

What may happen to the guest is its own affair; the process must end by itself, with status 0, having made so many
blocks. Half of them are executed by a machine's hart, in every mode and under page tables, half as a Linux program.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path

from minivmm.boot.elf import (
    CLASS_64,
    DATA_LITTLE_ENDIAN,
    EM_RISCV,
    ET_EXEC,
    FILE_HEADER_64,
    MAGIC,
    PROGRAM_HEADER_64,
    PT_LOAD,
    FileHeader,
    ProgramHeader,
)
from minivmm.emulator.assembly import encode
from minivmm.emulator.mmu import PTE_PPN_SHIFT, PTE_V
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.translator.hart import TranslatingHart
from minivmm.emulator.traps import Privilege
from minivmm.emulator.user.abi import SystemCall
from minivmm.emulator.user.memory import STACK_TOP
from minivmm.emulator.user.process import Process
from minivmm.outcome import EndOfRun
from tests.minivmm.emulator.bench import SV39, TABLES, Bench
from tests.minivmm.emulator.sequences import random_code

CODE_SIZE = 1 << 14  # bytes of random code at once
TURNS = 40  # starts in it
STEPS = 300  # instructions from each
PROGRAM_BASE = 0x10000
_SATP = 0x180


def some_code(rng: random.Random, size: int) -> bytes:
    """Nothing but random words; instructions of every kind; or those with many stores near where they are."""
    match rng.randrange(4):
        case 0:
            return rng.randbytes(size)
        case 1:
            code = bytearray(random_code(rng, size))
            for at in range(0, size - 8, rng.choice((12, 20, 40))):  # auipc rs1,0; s? rs2,imm(rs1)
                code[at : at + 8] = _overwriting(rng)
            return bytes(code)
        case _:
            return random_code(rng, size)


def _overwriting(rng: random.Random) -> bytes:
    base, name = rng.randrange(1, 32), rng.choice(("sb", "sh", "sw", "sd"))
    here = encode("auipc", rd=base, imm=rng.choice((0, 0, 0, 4096, -4096)))
    store = encode(name, rs1=base, rs2=rng.randrange(32), imm=rng.randint(-64, 127))
    return here.to_bytes(4, "little") + store.to_bytes(4, "little")


def some_value(rng: random.Random, start: int, size: int) -> int:
    """Any number, a small one, or a pointer: into `size` bytes from `start`, at their edges, aligned or not."""
    match rng.randrange(5):
        case 0:
            return rng.getrandbits(64)
        case 1:
            return rng.getrandbits(12)
        case 2:
            return start + size * rng.randrange(2) + rng.randint(-16, 16) & (1 << 64) - 1
        case 3:
            return start + 8 * rng.randrange(size >> 3)
        case _:
            return start + rng.randrange(size)


def machine_blocks(rng: random.Random, wanted: int) -> int:
    """Makes so many blocks in M-, S- and U-mode; returns how many it were."""
    bench = Bench(TranslatingHart)
    hart, size = bench.hart, bench.ram.size
    while hart.code.made < wanted:
        bench.ram.write(RAM_BASE, some_code(rng, CODE_SIZE))
        hart.code.fence()
        if rng.randrange(2):
            _random_tables(rng, bench)
        for _ in range(TURNS):
            for register in range(1, 32):
                hart.x[register] = some_value(rng, RAM_BASE, size)
            hart.csrs.mtvec = hart.csrs.stvec = RAM_BASE + 4 * rng.randrange(CODE_SIZE >> 2)
            hart.csrs.write(_SATP, rng.choice((0, SV39 | TABLES >> 12)))
            hart.waiting = False
            hart.pc = RAM_BASE + 2 * rng.randrange(CODE_SIZE >> 1)
            hart.enter(int(rng.choice((Privilege.M, Privilege.S, Privilege.U))))
            with contextlib.suppress(EndOfRun):
                hart.execute(STEPS)
    made = hart.code.made
    bench.close()
    return made


def _random_tables(rng: random.Random, bench: Bench) -> None:
    """A page table whose lower levels show RAM at its own address, in another order, with any rights."""
    middle, lowest = TABLES + 4096, TABLES + 8192
    bench.ram.write_u64(TABLES + (RAM_BASE >> 30 & 511) * 8, middle >> 12 << PTE_PPN_SHIFT | PTE_V)
    bench.ram.write_u64(middle + (RAM_BASE >> 21 & 511) * 8, lowest >> 12 << PTE_PPN_SHIFT | PTE_V)
    for page in range(256):
        frame = page if rng.randrange(4) else rng.choice((rng.randrange(256), rng.getrandbits(20)))
        rights = 0xF | rng.getrandbits(8) if rng.randrange(8) else rng.getrandbits(10)
        bench.ram.write_u64(lowest + 8 * page, (RAM_BASE >> 12) + frame << PTE_PPN_SHIFT | rights)
    bench.hart.mmu.flush()


def write_program(path: Path, code: bytes) -> Path:
    """A static ELF program for Linux/riscv64: one segment of instructions that can also be written."""
    headers = FILE_HEADER_64.size + PROGRAM_HEADER_64.size
    header = FileHeader(
        *(ET_EXEC, EM_RISCV, 1, PROGRAM_BASE + headers, FILE_HEADER_64.size, 0, 0),
        *(FILE_HEADER_64.size, PROGRAM_HEADER_64.size, 1, 0, 0, 0),
    )
    size = headers + len(code)
    segment = ProgramHeader(PT_LOAD, 7, 0, PROGRAM_BASE, PROGRAM_BASE, size, size, 4096)
    ident = (MAGIC + bytes((CLASS_64, DATA_LITTLE_ENDIAN, 1))).ljust(16, b"\0")
    path.write_bytes(ident + FILE_HEADER_64.pack(header)[16:] + PROGRAM_HEADER_64.pack(segment) + code)
    return path


def program_blocks(rng: random.Random, wanted: int, directory: Path) -> int:
    """Makes so many blocks in a program, with any system call it stumbles upon; returns how many it were."""
    made = 0
    root = directory / "root"
    root.mkdir()
    calls = [int(call) for call in SystemCall]
    while made < wanted:
        program = write_program(directory / "program", some_code(rng, CODE_SIZE))
        with Process(program, root=root, memory=16 << 20) as process:
            hart, start = process.hart, process.hart.pc
            process.files.replace(1, process.files.open("/output", 0o1101, 0o600))
            for _ in range(TURNS):
                process.begin(timeout=0.05)
                for register in range(1, 32):
                    area = rng.choice(((start, CODE_SIZE), (STACK_TOP - 8192, 8192)))
                    hart.x[register] = some_value(rng, *area)
                hart.x[17] = rng.choice(calls) if rng.randrange(4) else rng.getrandbits(9)
                hart.pc = start + 2 * rng.randrange(CODE_SIZE >> 1)
                with contextlib.suppress(EndOfRun):
                    hart.execute(STEPS)
            made += hart.code.made
    return made


def main(seed: int, wanted: int) -> int:
    """Prints what was done."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        made = machine_blocks(rng, wanted // 2)
        made += program_blocks(rng, wanted - wanted // 2, Path(directory))
    print(made, "blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
