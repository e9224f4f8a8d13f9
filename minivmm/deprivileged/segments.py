"""The descriptor tables of one vCPU (SDM 3A 3.4 and 3.5), and what ring 3 may load from them.

Pages 0 to 13 of the GDT and all of the LDT are a policy's; it has checked what it puts there. Page 14 is the monitor's.
"""

from __future__ import annotations

import struct

from minivmm.deprivileged.monitor import GDT_SIZE, LDT_SIZE, SEGMENTS, CpuArea, Selector
from minivmm.kvm.abi import kvm_segment
from minivmm.memory import GuestMemory
from minivmm.x86 import descriptors

DESCRIPTOR_SIZE = 8
_LINUX = struct.pack(
    f"<{(Selector.USER64 >> 3) + 1}Q",
    *(
        descriptors.gdt_entry(SEGMENTS[index << 3 | 3]) if index << 3 | 3 in SEGMENTS else 0
        for index in range((Selector.USER64 >> 3) + 1)
    ),
)
"""Linux's selectors, which are in a GDT until another is loaded."""

_TABLE_INDICATOR = 1 << 2  # of a selector: it is in the LDT
_CODE, _WRITABLE_OR_READABLE, _ACCESSED = 8, 2, 1  # of a descriptor's type (SDM 3A table 3-1)
_SEGMENT, _PRESENT, _DPL3 = 1 << 44, 1 << 47, 3 << 45
_NULL = 3  # the greatest null selector


class Segments:
    """The GDT and the LDT in `area`, and the segments in them, as they are loaded into segment registers."""

    def __init__(self, memory: GuestMemory, area: CpuArea) -> None:
        self._memory = memory
        self._area = area
        self._gdt_used, self._ldt_used = GDT_SIZE, 0
        self.codes: dict[int, bytes | None] = {}
        self.stacks: dict[int, bytes | None] = {}
        """What `code` and `stack` have answered so far: emptied, and never another dict."""
        self.load_gdt(b"")

    def load_gdt(self, table: bytes) -> None:
        """Pages 0 to 13 become `table` and zeros after it; with an empty one, what they were at first.

        Raises ValueError for one that is too large or not whole descriptors.
        """
        self._gdt_used = self._load(self._area.gdt, table or _LINUX, self._gdt_used, GDT_SIZE)

    def load_ldt(self, table: bytes) -> None:
        """The LDT becomes `table`; with an empty one there is none. Raises ValueError as load_gdt does."""
        self._ldt_used = self._load(self._area.ldt, table, self._ldt_used, LDT_SIZE)

    def store_descriptor(self, index: int, descriptor: int) -> None:
        """Entry `index` of the GDT becomes `descriptor`. Raises ValueError for one that is not the policy's."""
        end = (index + 1) * DESCRIPTOR_SIZE
        if not 0 < end <= GDT_SIZE:
            raise ValueError(f"entry {index} of the GDT is not a policy's")
        self._memory.write_u64(self._area.gdt + end - DESCRIPTOR_SIZE, descriptor)
        self._gdt_used = max(self._gdt_used, end)
        self._forget()

    def _load(self, at: int, table: bytes, used: int, size: int) -> int:
        if len(table) % DESCRIPTOR_SIZE or len(table) > size:
            raise ValueError(f"{len(table)} bytes are no table of descriptors of at most {size} bytes")
        self._memory.write(at, table.ljust(used, b"\0"))
        self._forget()
        return len(table)

    def _forget(self) -> None:
        self.codes.clear()
        self.stacks.clear()

    @property
    def ldt(self) -> kvm_segment:
        """What LDTR holds."""
        if not self._ldt_used:
            return kvm_segment(unusable=1)
        return kvm_segment(self._area.ldt_va, self._ldt_used - 1, Selector.LDT, descriptors.LDT, 1)

    def code(self, selector: int) -> bytes | None:
        """The kvm_segment of what may be in CS: a present code segment of DPL 3. None where there is none."""
        if selector not in self.codes:
            segment = self._find(selector)
            fits = segment is not None and segment.type & _CODE and not (segment.l and segment.db)
            self.codes[selector] = bytes(segment) if segment is not None and fits else None
        return self.codes[selector]

    def stack(self, selector: int) -> bytes | None:
        """The kvm_segment of what may be in SS: a present, writable data segment of DPL 3. None where there is none."""
        if selector not in self.stacks:
            segment = self._find(selector)
            fits = segment is not None and segment.type & (_CODE | _WRITABLE_OR_READABLE) == _WRITABLE_OR_READABLE
            self.stacks[selector] = bytes(segment) if segment is not None and fits else None
        return self.stacks[selector]

    def data(self, selector: int) -> kvm_segment | None:
        """What DS, ES, FS or GS hold once `selector` is loaded: a present data or readable code segment of DPL 3, or
        nothing, by a null selector. None for one that cannot be loaded (SDM 2B, MOV)."""
        if selector <= _NULL:
            return kvm_segment(selector=selector, unusable=1)
        segment = self._find(selector | 3)
        if segment is None or segment.type & (_CODE | _WRITABLE_OR_READABLE) == _CODE:
            return None
        segment.selector = selector
        return segment

    def _find(self, selector: int) -> kvm_segment | None:
        """The present segment of DPL 3 that `selector`, of RPL 3, names."""
        at = selector & 0xFFF8
        if selector & 3 != 3 or selector <= _NULL or selector > 0xFFFF:
            return None
        if selector & _TABLE_INDICATOR:
            table, size = self._area.ldt, self._ldt_used
        else:
            table, size = self._area.gdt, self._gdt_used
            if selector in SEGMENTS and at >= GDT_SIZE:
                size = at + DESCRIPTOR_SIZE  # Xen's, in the monitor's page
        if at + DESCRIPTOR_SIZE > size:
            return None
        descriptor = self._memory.read_u64(table + at)
        if descriptor & (_SEGMENT | _PRESENT | _DPL3) != _SEGMENT | _PRESENT | _DPL3:
            return None
        return descriptors.segment(selector, descriptor | _ACCESSED << 40)
