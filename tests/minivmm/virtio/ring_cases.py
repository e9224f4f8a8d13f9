"""Random queues, and what must become of them: a second, slow reading of virtio 1.2, 2.7, to judge the real one by.

Guest memory here is 1 MiB. The rings lie where no buffer of a case can reach, so what a case means does not change
while it is served, and every byte the device may touch is known beforehand.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

from minivmm.errors import VtkError
from minivmm.memory import GuestMemory
from minivmm.virtio.device import Chain, QueueSpec, VirtioDevice
from minivmm.virtio.driver import MockDriver
from minivmm.virtio.mmio import Status
from minivmm.virtio.queue import DESCRIPTOR, Descriptor, DescriptorFlag

QUEUE_SIZE = 8
MEMORY = 1 << 20
TABLES = 0x8000  # indirect tables of a case
DATA, DATA_END = 0x10000, 0x12000  # its buffers, at most 4 KiB each
WATCHED = ((TABLES, 0x14000), (MEMORY - 4096, MEMORY))  # where a slip would show: around the buffers, and at the end
FILL = 0xA5


class Fill(VirtioDevice):
    """Writes FILL into everything it may write, and keeps a copy of everything it may read."""

    device_type = 63
    queues = (QueueSpec("fillq", QUEUE_SIZE),)

    def __init__(self) -> None:
        super().__init__()
        self.read: list[bytes] = []

    def handle_fillq(self, chain: Chain) -> int:
        """Returns the number of bytes written."""
        self.read.append(chain.gather(1 << 24))
        for buffer in chain.writable:
            buffer[:] = bytes([FILL]) * len(buffer)
        return chain.writable_size


class RingCase(NamedTuple):
    """What a driver wrote: its descriptor table, indirect tables (at TABLES + 256 * n), heads, available index."""

    table: list[Descriptor]
    indirect: list[list[Descriptor]]
    heads: list[int]
    available: int


class Verdict(NamedTuple):
    """What must become of a case: memory outside the rings, and whether the device then needs a reset."""

    written: list[list[tuple[int, int]]]  # of each chain served: its writable (address, length)
    broken: bool


class Bad(Exception):
    """The chain breaks a rule."""


def head_at(case: RingCase, position: int) -> int:
    """What the available ring holds there: a place nobody wrote holds 0."""
    return case.heads[position] if position < len(case.heads) else 0


def judge(case: RingCase) -> Verdict:
    """The specification, read slowly. A chain that breaks a rule ends everything; those before it are served."""
    written: list[list[tuple[int, int]]] = []
    if case.available > QUEUE_SIZE:
        return Verdict([], True)
    for position in range(case.available):
        try:
            written.append(_walk(case, head_at(case, position)))
        except Bad:
            return Verdict(written, True)
    return Verdict(written, False)


def _walk(case: RingCase, head: int) -> list[tuple[int, int]]:
    table, inside, index, writable = case.table, False, head, []
    seen: set[tuple[bool, int]] = set()
    writing = False
    while True:
        if index >= len(table) or (inside, index) in seen:
            raise Bad
        seen.add((inside, index))
        addr, length, flags, following = table[index]
        if flags & DescriptorFlag.INDIRECT:
            number, odd = divmod(addr - TABLES, 256)
            if inside or flags & DescriptorFlag.NEXT or length % 16 or not length:
                raise Bad
            if addr + length > MEMORY:
                raise Bad
            known = case.indirect[number] if not odd and 0 <= number < len(case.indirect) else []
            # What was not written is zeroes: an empty readable buffer that ends the chain.
            table = (known + [Descriptor(0, 0, 0, 0)] * (length // 16))[: length // 16]
            inside, index = True, 0
            continue
        if flags & DescriptorFlag.WRITE:
            writing = True
        elif writing:
            raise Bad
        if length and addr + length > MEMORY:
            raise Bad
        if writing and length:
            writable.append((addr, length))
        if sum(1 for inner, _ in seen if inner) > QUEUE_SIZE:
            raise Bad
        if not flags & DescriptorFlag.NEXT:
            return writable
        index = following


def agrees(case: RingCase, memory: GuestMemory | None = None) -> bool:
    """Whether the device does with the case exactly what `judge` says, and touches nothing else."""
    device = Fill()
    driver = MockDriver(device, memory=GuestMemory(MEMORY) if memory is None else memory)
    driver.start()
    queue = driver.queues[0]
    for index, descriptor in enumerate(case.table):
        queue.write_descriptor(index, descriptor)
    for number, table in enumerate(case.indirect):
        driver.memory.write(TABLES + 256 * number, DESCRIPTOR.pack_all(table))
    for head in case.heads:
        queue.post_head(head)
    queue.set_available(case.available)

    verdict = judge(case)
    expected = {start: bytearray(driver.memory.read(start, end - start)) for start, end in WATCHED}
    for address, length in itertools.chain(*verdict.written):
        start = TABLES if address < MEMORY - 4096 else MEMORY - 4096
        expected[start][address - start : address - start + length] = bytes([FILL]) * length
    rings = driver.memory.read(0, queue.device)  # the used ring is the last of the three, and the only one written

    queue.kick(always=True)

    used = [(element.id, element.len) for element in queue.used()]
    same = (
        bool(driver.status & Status.DEVICE_NEEDS_RESET) is verdict.broken
        and all(driver.memory.read(start, len(data)) == data for start, data in expected.items())
        and used == [(head_at(case, i), sum(length for _, length in chain)) for i, chain in enumerate(verdict.written)]
        and driver.memory.read(0, queue.driver) == rings[: queue.driver]
    )
    driver.close()
    return same


def ring_case(seed: int) -> RingCase:
    """A case from its seed. Mostly good chains: what is random all over never gets past the first check."""
    rng = random.Random(seed)
    length = rng.randint(1, QUEUE_SIZE)
    heads = [rng.choice([rng.randrange(QUEUE_SIZE), rng.randint(0, QUEUE_SIZE)]) for _ in range(length)]
    return RingCase(
        _table(rng, QUEUE_SIZE, indirect=0.15),
        [_table(rng, rng.choice([rng.randint(0, 8), QUEUE_SIZE + 1]), indirect=0.02) for _ in range(2)],
        heads,
        rng.choice([len(heads)] * 5 + [rng.randint(0, QUEUE_SIZE + 1)]),
    )


def _table(rng: random.Random, size: int, *, indirect: float) -> list[Descriptor]:
    """A table that is well made, or not so well."""
    care = rng.choice([0.85, 1.0])
    writing_from = rng.randint(0, size)
    return [_descriptor(rng, i, size, care, indirect, i >= writing_from) for i in range(size)]


def _descriptor(rng: random.Random, index: int, size: int, care: float, indirect: float, writing: bool) -> Descriptor:
    """Buffers lie in DATA, or now and then reach for what is not the guest's; never for rings or tables."""
    flags = DescriptorFlag.WRITE if writing is (rng.random() < care) else DescriptorFlag(0)
    if index + 1 < size and rng.random() < care:
        flags |= DescriptorFlag.NEXT
    following = index + 1 if rng.random() < care else rng.choice([rng.randint(0, size), 0xFFFF])
    if rng.random() < indirect:
        flags |= DescriptorFlag.INDIRECT
        if rng.random() < 0.8:
            flags &= ~DescriptorFlag.NEXT
        address = rng.choice([TABLES, TABLES + 256] * 4 + [TABLES + 512, MEMORY - 16, MEMORY, 2**64 - 16])
        length = rng.choice([16, 32, 64, 128, 144, 144, 144, 0, 15, 24])
    elif rng.random() < care:
        address, length = rng.randint(DATA, DATA_END), rng.choice([rng.randint(1, 64), rng.randint(1, 64), 0, 4096])
    else:
        address = rng.choice([DATA, MEMORY - 1, MEMORY - 64, MEMORY, 1 << 32, 2**64 - 1])
        length = rng.choice([1, 64, 65, 1 << 31, 2**32 - 1])
    return Descriptor(address, length, int(flags), following)


class Exhausted(VtkError):
    """A device looked at guest memory more often than any correct one needs to."""


class MeteredMemory(GuestMemory):
    """Guest memory that ends a device which never ends: at most `budget` views are given out."""

    def __init__(self, size: int, budget: int) -> None:
        super().__init__(size)
        self.budget = budget

    def view(self, address: int, length: int) -> memoryview:
        """As GuestMemory's. Raises Exhausted."""
        self.budget -= 1
        if self.budget < 0:
            raise Exhausted("views without end")
        return super().view(address, length)
