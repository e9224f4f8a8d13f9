"""Everything of ours that runs inside the machine: a few instructions at ring 0 and one at ring 3, byte by byte.

Each piece but the last ends in an `out` whose port says which it was; the VMM never computes from where RIP stopped,
for back ends differ in that. What follows an `out` is `hlt`: no code returns to it, and ring-3 code that strays there
gets #GP.
"""

from __future__ import annotations

from collections.abc import Sequence

Code = Sequence[tuple[bytes, str]]
"""Instructions with what the machine's state is after each."""

HLT = b"\xf4"  # the filling

VECTORS = 256
ENTRY_SIZE = 4  # bytes of stub a vector

# Which piece a port means. At ring 0 any other port is the vector of the gate that was entered: no exception has these
# two, software cannot enter their gates, and the machine has no interrupt controller.
STORES_PORT = 0xFE
SYSCALL_PORT = 0xFF

CALL_PORT = 0xFD
"""Where ring 3 may make a system call without `syscall`: `lea rcx, [rip + 2]; out CALL_PORT, al`. A Monitor made with
`call_port` opens it. Software does not come to a gate of this number at ring 0 either."""


def trap_entry(vector: int) -> Code:
    """The handler of one IDT gate.

    The processor has loaded RSP from the TSS and pushed what tells of the interrupted code (SDM 3A 6.14.2):

        stack top ->  SS
                      RSP
                      RFLAGS
                      CS
                      RIP
        RSP ------->  error code, for the vectors that have one

    All other registers still hold what ring 3 had in them, and are read by the VMM as they are.
    """
    return [
        (bytes((0xE6, vector)), "out VECTOR, al     the VMM has the vCPU; it enters ring 3 again by itself"),
    ]


SYSCALL_GATE: Code = [
    # Here LSTAR points. Entered in ring 0 on hardware back ends and in ring 3 on software ones; RSP is the caller's in
    # both, so nothing may be pushed. RCX holds the caller's RIP, R11 its RFLAGS. `out imm8` leaves every register.
    (b"\xe6\xff", "out 0xff, al       the VMM has the vCPU; which ring it came from decides nothing"),
]

STORES: Code = [
    # Bytes stored as they are by the guest's own ring 0, which every KVM sees at once: it forgets what it made of the
    # page-table entry that begins there, or of the whole page when none begins there. RSI: the list of their addresses;
    # RCX: how many, at least one. DF is clear.
    (b"\x48\xad", "again: lodsq       RAX = where; RSI is at the next"),
    (b"\xf0\x80\x08\x00", "lock or byte [rax], 0   stored, and nothing lost that another CPU stores meanwhile"),
    (b"\xe2\xf8", "loop again         RCX are left"),
    # FLUSH_OFFSET: with no list, a run begins here.
    (b"\x0f\x20\xd8", "mov rax, cr3"),
    (b"\x0f\x22\xd8", "mov cr3, rax       no translation of before the stores is left in the TLB"),
    (b"\xe6\xfe", "out 0xfe, al       the VMM has the vCPU"),
]
FLUSH_OFFSET = 8
STORES_AND_ENTER: Code = [
    # The same on the way to ring 3. RSP: what ring 3 has in the registers used here, and the frame to enter it by.
    *STORES[:-1],
    (b"\x5e", "pop rsi"),
    (b"\x59", "pop rcx"),
    (b"\x58", "pop rax            RSP is at RIP, CS, RFLAGS, RSP, SS"),
    (b"\x48\xcf", "iretq              ring 3 runs"),
]


def assemble(code: Code) -> bytes:
    """The bytes of `code`."""
    return b"".join(instruction for instruction, _ in code)
