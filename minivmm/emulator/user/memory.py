"""A process' memory: pages of guest RAM at the addresses mmap(2) and brk(2) give them.

There are no page tables: the hart's MMU looks here. A page is given a frame when it is first touched, so that a large
mapping costs nothing; frames are the machine's RAM, and when that is used up the process gets SIGSEGV, as from a kernel
that has no more.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from minivmm.emulator.physical import PAGE_SHIFT, RAM_BASE, AddressSpace
from minivmm.emulator.traps import PAGE_FAULT, Access, Trap
from minivmm.emulator.user.abi import Prot
from minivmm.memory import PAGE_SIZE

USER_END = 1 << 38  # Sv39's lower half, which Linux gives to programs
MMAP_TOP = USER_END - (1 << 30)  # mappings are placed downwards from here
STACK_TOP = USER_END - (1 << 21)
MAX_SEGMENTS = 65530  # Linux' vm.max_map_count
_NEEDED = {int(Access.FETCH): int(Prot.EXEC), int(Access.LOAD): int(Prot.READ), int(Access.STORE): int(Prot.WRITE)}


class NoMemory(Exception):
    """There is no address or no frame left."""


class Segment(NamedTuple):
    """Neighbouring pages with the same rights."""

    start: int
    end: int
    prot: Prot


class ProcessMemory:
    """The mappings of one process, in frames of `space`."""

    def __init__(self, space: AddressSpace) -> None:
        self._space = space
        self._segments: list[Segment] = []  # in order, without overlap
        self._frames: dict[int, int] = {}  # virtual page -> offset in RAM
        self._free: list[int] = []
        self._next = 0
        self.brk_start = self.brk_end = 0

    # --- mappings ----------------------------------------------------------------------------------------------------
    def map(self, start: int, length: int, prot: Prot) -> None:
        """Whole pages, zero, in place of what was there. Raises NoMemory: too many mappings."""
        end = start + length
        self.unmap(start, length)
        if len(self._segments) >= MAX_SEGMENTS:
            raise NoMemory
        # With a neighbour of the same rights it becomes one, as in Linux: a heap is one mapping.
        first = last = bisect_right(self._segments, (start,))
        if first and self._segments[first - 1][1:] == (start, prot):
            first -= 1
            start = self._segments[first].start
        if last < len(self._segments) and self._segments[last][::2] == (end, prot):
            end = self._segments[last].end
            last += 1
        self._segments[first:last] = [Segment(start, end, prot)]

    def unmap(self, start: int, length: int) -> bool:
        """Takes pages away. True when one of them could be executed. Raises NoMemory: too many mappings."""
        end = start + length
        executable = False
        kept: list[Segment] = []
        for segment in self._segments:
            if segment.end <= start or segment.start >= end:
                kept.append(segment)
                continue
            executable |= bool(segment.prot & Prot.EXEC)
            if segment.start < start:
                kept.append(Segment(segment.start, start, segment.prot))
            if segment.end > end:
                kept.append(Segment(end, segment.end, segment.prot))
        self._replace(kept)
        for page in self._pages_in(start, end):
            self._free.append(self._frames.pop(page))
        return executable

    def protect(self, start: int, length: int, prot: Prot) -> bool | None:
        """Changes the rights of pages; None when some of them are not mapped. True when code was among them. Raises
        NoMemory: too many mappings."""
        end = start + length
        covered, executable = start, False
        changed: list[Segment] = []
        for segment in self._segments:
            if segment.end <= start or segment.start >= end:
                changed.append(segment)
                continue
            if segment.start > covered:
                return None
            executable |= bool((segment.prot | prot) & Prot.EXEC)
            low, high = max(segment.start, start), min(segment.end, end)
            if segment.start < low:
                changed.append(Segment(segment.start, low, segment.prot))
            changed.append(Segment(low, high, prot))
            if segment.end > high:
                changed.append(Segment(high, segment.end, segment.prot))
            covered = high
        if covered < end:
            return None
        self._replace(sorted(changed))
        return executable

    def _replace(self, segments: list[Segment]) -> None:
        if len(segments) > max(MAX_SEGMENTS, len(self._segments)):
            raise NoMemory
        self._segments = segments

    def find_room(self, length: int, hint: int = 0) -> int:
        """Where `length` bytes fit. Raises NoMemory."""
        if hint and hint % PAGE_SIZE == 0 and hint + length <= MMAP_TOP and self.is_free(hint, length):
            return hint
        high = MMAP_TOP
        for segment in reversed(self._segments):
            if segment.start >= MMAP_TOP:
                continue
            if high - segment.end >= length:
                break
            high = min(high, segment.start)
        if high - length < self.brk_end + PAGE_SIZE:
            raise NoMemory
        return high - length

    def move(self, start: int, length: int, to: int) -> None:
        """The pages of one mapping, with what is in them, to where nothing is. Raises NoMemory."""
        self.map(to, length, self.rights(start))
        moved = to - start >> PAGE_SHIFT
        frames = {page + moved: self._frames.pop(page) for page in self._pages_in(start, start + length)}
        self.unmap(start, length)
        self._frames |= frames

    def segment(self, address: int) -> Segment | None:
        """The mapping that an address is in."""
        at = bisect_right(self._segments, (address, 1 << 64, 0)) - 1
        if at >= 0 and address < self._segments[at].end:
            return self._segments[at]
        return None

    def is_free(self, start: int, length: int) -> bool:
        """Whether nothing is mapped there."""
        end = start + length
        return all(segment.end <= start or segment.start >= end for segment in self._segments)

    def _pages_in(self, start: int, end: int) -> list[int]:
        first, last = start >> PAGE_SHIFT, end + PAGE_SIZE - 1 >> PAGE_SHIFT
        if last - first > len(self._frames):
            return [page for page in self._frames if first <= page < last]
        return [page for page in range(first, last) if page in self._frames]

    # --- pages -------------------------------------------------------------------------------------------------------
    def rights(self, address: int) -> Prot:
        """What may be done there."""
        segment = self.segment(address)
        return segment.prot if segment is not None else Prot(0)

    def translate(self, address: int, access: int) -> int:
        """The physical address; the page is given a frame. Raises Trap with the page fault."""
        page = address >> PAGE_SHIFT
        segment = self.segment(address)
        if segment is None or not int(segment.prot) & _NEEDED[access]:
            raise Trap(PAGE_FAULT[access], address)
        frame = self._frames.get(page)
        if frame is None:
            try:
                frame = self._take(page)
            except NoMemory:
                raise Trap(PAGE_FAULT[access], address) from None
        return RAM_BASE + frame + (address & PAGE_SIZE - 1)

    def _take(self, page: int) -> int:
        if self._free:
            frame = self._free.pop()
            self._space.ram8[frame : frame + PAGE_SIZE] = bytes(PAGE_SIZE)
        elif self._next + PAGE_SIZE <= self._space.ram.size:
            frame = self._next
            self._next += PAGE_SIZE
        else:
            raise NoMemory
        self._frames[page] = frame
        return frame

    @property
    def used(self) -> int:
        """Bytes of RAM that are in use."""
        return len(self._frames) * PAGE_SIZE

    def pages(self) -> dict[int, int]:
        """Where in RAM a page is, by its address, for those that have been touched."""
        return {page << PAGE_SHIFT: frame for page, frame in self._frames.items()}

    def frame(self, address: int) -> int | None:
        """Where in RAM the page of an address is; None when it has not been touched."""
        return self._frames.get(address >> PAGE_SHIFT)

    # --- for system calls: the kernel's accesses ---------------------------------------------------------------------
    def read(self, address: int, length: int) -> bytes:
        """Raises Trap, as the program's own load would."""
        return b"".join(bytes(view) for view in self.views(address, length, Access.LOAD))

    def write(self, address: int, data: bytes) -> None:
        """Raises Trap, as the program's own store would, and then nothing is written."""
        at = 0
        for view in self.views(address, len(data), Access.STORE):
            view[:] = data[at : at + len(view)]
            at += len(view)

    def force(self, address: int, data: bytes | memoryview) -> None:
        """Writes whatever the rights: the loader."""
        at = 0
        while at < len(data):
            page = address + at >> PAGE_SHIFT
            frame = self._frames.get(page)
            if frame is None:
                frame = self._take(page)
            offset = address + at & PAGE_SIZE - 1
            part = data[at : at + PAGE_SIZE - offset]
            self._space.ram8[frame + offset : frame + offset + len(part)] = part
            at += len(part)

    def views(self, address: int, length: int, access: Access) -> list[memoryview]:
        """The memory itself, a piece a page. Raises Trap."""
        found = []
        end = address + length
        while address < end:
            size = min(PAGE_SIZE - (address & PAGE_SIZE - 1), end - address)
            offset = self.translate(address, access) - RAM_BASE
            found.append(self._space.ram8[offset : offset + size])
            address += size
        return found

    def string(self, address: int, limit: int = 4096) -> bytes:
        """Up to a NUL. Raises Trap; ValueError when there is none within `limit`."""
        found = bytearray()
        while len(found) < limit:
            part = self.read(address, PAGE_SIZE - (address & PAGE_SIZE - 1))
            end = part.find(b"\0")
            if end >= 0:
                return bytes(found + part[:end])
            found += part
            address += len(part)
        raise ValueError("no end")
