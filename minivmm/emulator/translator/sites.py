"""The places at which translated code is left for Python, each with what Python must know to go on."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minivmm.emulator.decoder import Decoded
    from minivmm.emulator.semantics import Operation
    from minivmm.emulator.translator.code import TranslatedBlock
    from minivmm.emulator.translator.mmu import TranslatingRegime


class Kind(Enum):
    """Why translated code was left."""

    BUDGET = auto()  # before the block: not enough is left for it
    LOAD = auto()  # the page is not in the TLB, or is a device, or the address is misaligned
    STORE = auto()
    ATOMIC = auto()  # the same
    CALL = auto()  # an instruction, or a case of one, that is not translated
    SYSTEM = auto()  # the block ends here: an instruction that changes more than registers
    ATTEND = auto()  # behind an instruction that let in an interrupt
    CHAIN = auto()  # a jump to a known address that has not been followed yet
    JUMP = auto()  # a jump to an address that is not in the jump cache


class Site:
    """One such place."""

    __slots__ = (
        *("block", "decoded", "following", "index", "kind", "name", "operation"),
        *("pc", "place", "regime", "register", "resume", "target"),
    )

    def __init__(self, kind: Kind, regime: TranslatingRegime, block: TranslatedBlock, index: int, pc: int) -> None:
        self.kind = kind
        self.regime = regime  # whose code was executed
        self.block = block  # JUMP: of no meaning
        self.index = index  # of the instruction in its block
        self.pc = pc
        self.following = 0  # LOAD, STORE, ATOMIC, CALL, ATTEND: the guest address behind it
        self.name = ""  # LOAD, STORE: the instruction
        self.register = 0  # LOAD: rd; STORE: rs2
        self.resume = 0  # LOAD, STORE, ATOMIC, CALL: the host address behind it
        self.target = 0  # CHAIN: the guest address
        self.place = 0  # CHAIN: the offset of the jump's displacement in the buffer
        self.decoded: Decoded | None = None  # ATOMIC, CALL, SYSTEM
        self.operation: Operation | None = None  # ATOMIC, CALL, SYSTEM: what executes it, once it was needed
