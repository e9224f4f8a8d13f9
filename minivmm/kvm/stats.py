"""KVM's binary statistics file (api.rst 4.133): the kernel's own counters, by name."""

from __future__ import annotations

import ctypes
import os

from minivmm.kvm import abi


class Stats:
    """The statistics file of one vCPU or VM. Its table of names is read when first asked for."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offsets: dict[str, int] = {}

    def _table(self) -> dict[str, int]:
        """Where each cumulative one-word counter lies in the file, by name."""
        header = abi.kvm_stats_header.from_buffer_copy(os.pread(self._fd, ctypes.sizeof(abi.kvm_stats_header), 0))
        desc_size = ctypes.sizeof(abi.kvm_stats_desc)
        stride = desc_size + header.name_size
        table = os.pread(self._fd, stride * header.num_desc, header.desc_offset)
        offsets: dict[str, int] = {}
        for start in range(0, len(table), stride):
            desc = abi.kvm_stats_desc.from_buffer_copy(table, start)
            if desc.flags & abi.KVM_STATS_TYPE_MASK == abi.KVM_STATS_TYPE_CUMULATIVE and desc.size == 1:
                name = table[start + desc_size : start + stride].split(b"\0", 1)[0].decode("ascii", "replace")
                offsets[name] = header.data_offset + desc.offset
        return offsets

    def read(self) -> dict[str, int]:
        """Every cumulative counter. Never waits for a running vCPU."""
        if not self._offsets:
            self._offsets = self._table()
        return {name: int.from_bytes(os.pread(self._fd, 8, at), "little") for name, at in self._offsets.items()}

    def close(self) -> None:
        """Closes the file."""
        os.close(self._fd)
