"""Random instruction sequences as one guest, which reports over the serial port every register and every trap.

x29 points into scratch memory, x28 to an aligned place in it for atomics, x30 and x31 are the harness's own.
"""

from __future__ import annotations

import random

from minivmm.emulator.assembly import encode, program
from minivmm.emulator.compressed import COMPRESSED, Compressed
from minivmm.emulator.decoder import IllegalInstruction, decode
from minivmm.emulator.instructions import INSTRUCTIONS, Instruction
from minivmm.emulator.physical import RAM_BASE

SCRATCH = RAM_BASE + 0x20_0000  # 4 KiB each way from here
FREE = (*range(1, 28), 0)  # registers a sequence may change
ATOMIC_BASE, MEMORY_BASE = 28, 29

# On a trap: log mcause, mepc, mtval at t6, then go on behind the instruction, which is 2 bytes long unless its lowest
# bits are 11. Changes t5 and mscratch.
HANDLER = """
csrrs t5,mcause,zero
sd t5,0(t6)
csrrs t5,mepc,zero
sd t5,8(t6)
csrrs t5,mtval,zero
sd t5,16(t6)
addi t6,t6,24
csrrs t5,mepc,zero
lhu t5,0(t5)
andi t5,t5,3
sltiu t5,t5,3
xori t5,t5,1
slli t5,t5,1
addi t5,t5,2
csrrw t6,mscratch,t6
csrrs t6,mepc,zero
add t5,t5,t6
csrrw zero,mepc,t5
csrrw t6,mscratch,t6
mret
"""
_BASE_ROWS = [row for row in INSTRUCTIONS if row.format.name in ("R", "R4", "I", "U", "S", "B") or row.name == "jal"]
_LEFT_OUT = {"sret", "mret", "wfi", "sfence.vma", "jalr", "ecall"} | {
    row.name for row in INSTRUCTIONS if row.name.startswith("csr")
}
_COMPRESSED_LEFT_OUT = {"c.jr", "c.jalr", "c.addi16sp"}


def _values(rng: random.Random) -> int:
    """A 64-bit number of the kinds that go wrong: near a power of two, small, with one half empty, or any."""
    kind = rng.randrange(4)
    if kind == 0:
        return (1 << rng.randrange(64)) + rng.randint(-2, 2) & (1 << 64) - 1
    if kind == 1:
        return rng.randint(-3, 3) & (1 << 64) - 1
    if kind == 2:
        return rng.getrandbits(32) << rng.choice((0, 32))
    return rng.getrandbits(64)


def _floats(rng: random.Random) -> int:
    """A pattern of the kinds that go wrong: zeros, infinities, NaNs, subnormals, neighbours; doubles or singles."""
    single = rng.randrange(2)
    bits, fraction = (32, 23) if single else (64, 52)
    bias = (1 << bits - fraction - 2) - 1
    exponent = rng.choice((0, 0, 1, 2 * bias, 2 * bias + 1, bias, bias + 1, rng.randrange(2 * bias + 1)))
    exponent = rng.choice((exponent, bias + rng.randint(-2, 66)))
    kind = rng.randrange(4)
    significand = (0, 1 << fraction - 1, rng.getrandbits(fraction), (1 << fraction) - rng.randint(1, 3))[kind]
    value = rng.getrandbits(1) << bits - 1 | exponent << fraction | significand
    if single and rng.randrange(8):
        value |= 0xFFFF_FFFF << 32  # NaN-boxed
    return value


def _base(rng: random.Random, left_out: set[str]) -> int:
    """One base instruction, its operands random within what a sequence may do."""
    row: Instruction = rng.choice([row for row in _BASE_ROWS if row.name not in left_out])
    operands: dict[str, int] = {}
    atomic = row.name.partition(".")[0][:3] in ("lr", "sc", "amo")
    for operand in row.format.operands:
        match operand.name:
            case "rd":
                operands["rd"] = rng.choice(FREE)
            case "rs1" if atomic:
                operands["rs1"] = ATOMIC_BASE  # QEMU with one hart calls a misaligned AMO a load, unlike the manual
            case "rs1" if row.format.syntax.endswith("imm(rs1)"):
                operands["rs1"] = MEMORY_BASE
            case "rs1" | "rs2":
                operands[operand.name] = rng.choice(FREE)
            case "imm" if row.format.name in ("B", "J"):
                operands["imm"] = 4 * rng.randint(1, 3)
            case "imm" if row.format.name == "U":
                operands["imm"] = rng.randint(-(1 << 19), (1 << 19) - 1) << 12
            case "imm":
                operands["imm"] = rng.randint(-2048, 2047)
            case name:
                operands[name] = rng.getrandbits(operand.bits)
    return encode(row.name, **operands)


def _parcel(rng: random.Random) -> int:
    """One compressed instruction that keeps to the rules; c.nop where the dice say otherwise."""
    row: Compressed = rng.choice([row for row in COMPRESSED if row.name not in _COMPRESSED_LEFT_OUT])
    parcel = row.match | rng.getrandbits(16) & ~row.mask
    try:
        decoded = decode(parcel)
    except IllegalInstruction:
        return parcel
    memory = decoded.name in ("lw", "ld", "sw", "sd", "fld", "fsd")
    if decoded.compressed is None or decoded.compressed.name in _COMPRESSED_LEFT_OUT or memory:
        return 1
    if decoded.rd in (ATOMIC_BASE, MEMORY_BASE, 30, 31):
        return 1
    return 1 if decoded.name in ("jal", "beq", "bne") else parcel


def _illegal(rng: random.Random) -> int:
    """A 32-bit word that is no instruction."""
    while True:
        word = rng.getrandbits(32) | 3
        if word & 0x1C == 0x1C or word & 0x7F in (0x73, 0x0F, 0x2F, 0x07, 0x27, 0x43, 0x47, 0x4B, 0x4F, 0x53):
            continue
        try:
            decode(word)
        except IllegalInstruction:
            return word


class Guest:
    """A raw image that grows: words, lines of assembly, and what both kinds of guest report with."""

    def __init__(self) -> None:
        self.code = bytearray()
        self.word(0)  # jal over the routines
        self._put = len(self.code)  # sends the 8 bytes of a0, returns through ra
        self.text("lui t5,0x10000\n" + "sb a0,0(t5)\nsrli a0,a0,8\n" * 8 + "jalr zero,0(ra)\n")
        trap = len(self.code)
        self.text(HANDLER)
        self.code[0:4] = encode("jal", rd=0, imm=len(self.code)).to_bytes(4, "little")
        self.constant("t0", RAM_BASE + trap)
        self.text("csrrw zero,mtvec,t0\n")

    def word(self, value: int) -> None:
        """Four bytes."""
        self.code.extend(value.to_bytes(4, "little"))

    def text(self, source: str) -> None:
        """Lines of assembly, without labels."""
        self.code.extend(program(source, RAM_BASE + len(self.code)))

    def constant(self, register: str, value: int) -> None:
        """A 64-bit number, eleven bits at a time."""
        self.text(f"addi {register},zero,0")
        for shift in range(55, -1, -11):
            self.text(f"slli {register},{register},11\nori {register},{register},{value >> shift & 0x7FF}")

    def put(self) -> None:
        """Sends a0. Changes a0, ra and t5."""
        self.word(encode("jal", rd=1, imm=self._put - len(self.code)))

    def again_while_below(self, register: int, limit: int, start: int) -> None:
        """Back to the offset `start` in the image while one register is less than the other."""
        self.word(encode("bltu", rs1=register, rs2=limit, imm=start - len(self.code)))

    def finish(self) -> bytes:
        """Powers off; the image."""
        self.text("lui t0,0x100\nlui t1,0x5\naddi t1,t1,0x555\nsw t1,0(t0)\n")
        return bytes(self.code)


def random_code(rng: random.Random, size: int) -> bytes:
    """So many bytes of instructions of every kind, with any operands, and some that are none."""
    code = bytearray()
    while len(code) < size:
        kind = rng.randrange(16)
        if kind == 0:
            code += rng.getrandbits(32).to_bytes(4, "little")
        elif kind < 6:
            compressed = rng.choice(COMPRESSED)
            code += (compressed.match | rng.getrandbits(16) & ~compressed.mask).to_bytes(2, "little")
        else:
            row = rng.choice(INSTRUCTIONS)
            code += (row.match | rng.getrandbits(32) & ~row.mask).to_bytes(4, "little")
    return bytes(code[:size])


def guest(seed: int, sequences: int, length: int = 40) -> bytes:
    """A raw image: `sequences` runs of `length` instructions from fresh registers, each followed by its report."""
    rng = random.Random(seed)
    image = Guest()
    image.text("lui t0,0x6\ncsrrs zero,mstatus,t0\n")  # FS
    for _ in range(sequences):
        for register in range(32):
            image.constant("t0", _floats(rng))
            image.word(encode("fmv.d.x", rd=register, rs1=5))
        image.text(f"csrrwi zero,fcsr,0\ncsrrwi zero,frm,{rng.choice((0, 0, 0, 1, 2, 3, 4, 5, 7))}\n")
        image.constant("t6", SCRATCH + 0x2000)
        image.constant(f"x{MEMORY_BASE}", SCRATCH + rng.randrange(0, 8))
        image.constant(f"x{ATOMIC_BASE}", SCRATCH + 8 * rng.randrange(0, 8))
        for register in range(1, 28):
            image.constant(f"x{register}", _values(rng))
        # An SC of another width than its LR may succeed or not; QEMU and we differ there.
        left_out = _LEFT_OUT | set(rng.choice((("lr.w", "sc.w"), ("lr.d", "sc.d"))))
        for _ in range(length):
            kind = rng.randrange(20)
            if kind == 0:
                image.word(_illegal(rng))
            elif kind < 6:
                image.word(_parcel(rng) | _parcel(rng) << 16)
            else:
                image.word(_base(rng, left_out))
        image.text("addi zero,zero,0\n" * 4)  # where a branch near the end may land
        _report(image)
    return image.finish()


def _report(image: Guest) -> None:
    """The log of traps and the registers, as 8-byte words to the serial port; and a checksum over scratch memory."""
    for register in range(1, 28):
        image.word(encode("sd", rs1=31, rs2=register, imm=8 * register))
    for register in range(32):
        image.word(encode("fsd", rs1=31, rs2=register, imm=224 + 8 * register))
    image.text("csrrs t0,fcsr,zero\nsd t0,480(t6)\n")
    image.constant("s0", SCRATCH + 0x2000)
    image.text("addi s1,t6,488\n")
    loop = len(image.code)
    image.text("ld a0,0(s0)\n")
    image.put()
    image.text("addi s0,s0,8\n")
    image.again_while_below(8, 9, loop)
    image.constant("s0", SCRATCH - 2056)
    image.constant("s1", SCRATCH + 2072)
    image.text("addi a0,zero,0\naddi s2,zero,31\n")
    loop = len(image.code)
    image.text("ld a1,0(s0)\nmul a0,a0,s2\nadd a0,a0,a1\naddi s0,s0,8\n")
    image.again_while_below(8, 9, loop)
    image.put()
