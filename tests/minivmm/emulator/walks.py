"""Random page tables as one guest: each case draws three entries, a mode and an access, and reports what came of it.

The access is M-mode's with mstatus.MPRV, so that only it is translated.
"""

from __future__ import annotations

import random

from minivmm.emulator.csr_table import Status
from minivmm.emulator.mmu import PTE_A, PTE_D, PTE_PPN_SHIFT, PTE_R, PTE_U, PTE_V, PTE_W, PTE_X
from tests.minivmm.emulator.sequences import SCRATCH, Guest

TABLES = SCRATCH + 0x8000  # root, middle, leaf: a page each
ALL_MEMORY = "addi t0,zero,-1\ncsrrw zero,pmpaddr0,t0\naddi t0,zero,31\ncsrrw zero,pmpcfg0,t0"  # QEMU has PMP entries
# No AMO: QEMU with one hart makes it a load and then a store, which the tables' accessed bits show.
ACCESSES = (
    "ld a0,0(s0)", "lbu a0,0(s0)", "sd s0,0(s0)", "sb s0,0(s0)", "lr.w a0,(s0)",
)  # fmt: skip
FLAGS = (PTE_R, PTE_W, PTE_X, PTE_U, PTE_A, PTE_D)


def _entry(rng: random.Random, to: int, pointer: bool) -> int:
    """A page table entry, sometimes with a bit that should not be as it is."""
    entry = to >> 12 << PTE_PPN_SHIFT | PTE_V
    if not pointer:
        entry |= PTE_R | sum(flag for flag in FLAGS if rng.randrange(2))
    if rng.randrange(6) == 0:
        # Where a table would lie outside memory, QEMU says page fault and the manual (4.3.2, step 2) access fault.
        entry ^= 1 << rng.choice((*range(10), *range(54 if pointer else 38, 64)))
    return entry


def guest(seed: int, cases: int) -> bytes:
    """The raw image."""
    rng = random.Random(seed)
    image = Guest()
    image.text(ALL_MEMORY)
    image.constant("t6", SCRATCH + 0x1_0000)  # where traps are logged
    image.text("addi s3,t6,0")
    for _ in range(cases):
        leaf_level = rng.choice((0, 0, 0, 1, 2))
        page = {0: SCRATCH, 1: SCRATCH, 2: SCRATCH & -(1 << 30)}[leaf_level]
        address = (
            rng.randrange(1 << 26) << 12
            if leaf_level == 0
            else rng.randrange(1 << 26 - 9 * leaf_level) << 12 + 9 * leaf_level
        )
        if leaf_level == 2:
            address |= SCRATCH & (1 << 30) - 1
        address |= 8 * rng.randrange(256)
        if rng.randrange(12) == 0:
            address |= rng.getrandbits(26) << 38
        for level, table in ((2, TABLES), (1, TABLES + 0x1000), (0, TABLES + 0x2000)):
            place = table + (address >> 12 + 9 * level & 511) * 8
            image.constant("t1", _entry(rng, page if level == leaf_level else table + 0x1000, level > leaf_level))
            image.constant(f"s{4 + level}", place)
            image.text(f"sd t1,0(s{4 + level})")
        image.constant("t0", 8 << 60 | TABLES >> 12)
        image.text("csrrw zero,satp,t0\nsfence.vma zero,zero\naddi a0,zero,0")
        image.constant("s0", address)
        status = Status.MPRV | rng.choice((0, 1, 1)) << 11
        status |= rng.choice((0, Status.SUM)) | rng.choice((0, Status.MXR))
        image.constant("t0", int(status))
        image.text(f"csrrw zero,mstatus,t0\n{rng.choice(ACCESSES)}\ncsrrw zero,mstatus,zero")
        image.put()
        for level in (2, 1, 0):
            image.text(f"ld a0,0(s{4 + level})")
            image.put()
    # the log of traps
    loop = len(image.code)
    image.text("ld a0,0(s3)")
    image.put()
    image.text("addi s3,s3,8")
    image.again_while_below(19, 31, loop)
    return image.finish()
