"""LR, SC and the AMOs in x86-64 (Unprivileged ISA, chapter 8).

There is one hart, so that nobody comes between a load and a store: plain ones do. RAM alone is reached from here,
through the TLB; what is misaligned, no RAM, not permitted or not in the TLB is executed by Python, exception and all.
"""

from __future__ import annotations

from minivmm.emulator.decoder import Decoded
from minivmm.emulator.translator import x86
from minivmm.emulator.translator.csrs import EIGHT_BYTES, FOUR_BYTES
from minivmm.emulator.translator.emit import Emit
from minivmm.emulator.translator.emitter import RAX, RCX, RDX, Emitter
from minivmm.emulator.translator.registers import STATE
from minivmm.emulator.translator.sites import Kind, Site
from minivmm.emulator.translator.state import RBP_OFFSET, RESERVED, RESERVED_VALUE
from minivmm.emulator.translator.x86 import Alu, Cond

# What stores, with rs2 as its register operand: MOV and the operations on memory.
_ON_MEMORY = {"amoswap": b"\x89", "amoadd": b"\x01", "amoxor": b"\x31", "amoand": b"\x21", "amoor": b"\x09"}
# When the value in memory stays: rs2's is above it, or below.
_KEPT_WHEN = {"amomin": Cond.G, "amomax": Cond.L, "amominu": Cond.A, "amomaxu": Cond.B}


def _begin(e: Emitter, d: Decoded, table_at: int) -> tuple[Site, bool]:
    """RAX becomes the host's address; returns the site for Python, and whether it is about eight bytes."""
    wide = d.name.endswith("d")
    site = e.host_address(table_at, d, 8 if wide else 4, Kind.ATOMIC)
    site.decoded = d
    return site, wide


def _modify(e: Emitter, d: Decoded) -> None:
    site, wide = _begin(e, d, e.tables.write_at)
    e.put(x86.load("ld" if wide else "lw", RCX, RAX))
    e.put(x86.memory(_ON_MEMORY[d.name.partition(".")[0]], e.source(d.rs2, RDX), RAX, 0, wide))
    if d.rd:
        e.commit(d.rd, RCX)
    e.resume(site)


def _choose(e: Emitter, d: Decoded) -> None:
    site, wide = _begin(e, d, e.tables.write_at)
    e.put(x86.load("ld" if wide else "lw", RCX, RAX))
    e.move(RDX, d.rs2, wide)
    e.put(
        x86.alu(Alu.CMP, RDX, RCX, wide),
        x86.cmov(_KEPT_WHEN[d.name.partition(".")[0]], RDX, RCX, wide),
        x86.memory(b"\x89", RDX, RAX, 0, wide),
    )
    if d.rd:
        e.commit(d.rd, RCX)
    e.resume(site)


def _load_reserved(e: Emitter, d: Decoded) -> None:
    site, wide = _begin(e, d, e.tables.read_at)
    e.put(
        x86.memory(b"\x8b", RCX, RAX, 0, wide),  # unsigned, as it is compared with
        x86.alu_imm(Alu.ADD, RAX, EIGHT_BYTES if wide else FOUR_BYTES),
        x86.mov_store(STATE, RESERVED - RBP_OFFSET, RAX),
        x86.mov_store(STATE, RESERVED_VALUE - RBP_OFFSET, RCX),
    )
    if d.rd:
        if not wide:
            e.put(x86.movsxd(RCX, RCX))
        e.commit(d.rd, RCX)
    e.resume(site)


def _store_conditional(e: Emitter, d: Decoded) -> None:
    """Succeeds when address, size and value are the reservation's; that ends in any case."""
    site, wide = _begin(e, d, e.tables.write_at)
    e.put(
        x86.lea(RCX, RAX, EIGHT_BYTES if wide else FOUR_BYTES),
        x86.alu_load(Alu.CMP, RCX, STATE, RESERVED - RBP_OFFSET),
        x86.mov_store_imm32(STATE, RESERVED - RBP_OFFSET, 0, True),
    )
    elsewhere = e.jump(x86.jcc(Cond.NE))
    e.put(x86.memory(b"\x8b", RCX, RAX, 0, wide), x86.alu_load(Alu.CMP, RCX, STATE, RESERVED_VALUE - RBP_OFFSET))
    changed = e.jump(x86.jcc(Cond.NE))
    e.put(x86.memory(b"\x89", e.source(d.rs2, RDX), RAX, 0, wide), x86.mov_imm(RCX, 0))
    done = e.jump(x86.JMP)
    e.land(elsewhere)
    e.land(changed)
    e.put(x86.mov_imm(RCX, 1))
    e.land(done)
    if d.rd:
        e.commit(d.rd, RCX)
    e.resume(site)


ATOMICS: dict[str, Emit] = {
    **{f"{name}.{width}": _modify for name in _ON_MEMORY for width in "wd"},
    **{f"{name}.{width}": _choose for name in _KEPT_WHEN for width in "wd"},
    **dict.fromkeys(("lr.w", "lr.d"), _load_reserved),
    **dict.fromkeys(("sc.w", "sc.d"), _store_conditional),
}
"""As emit.EMIT."""
