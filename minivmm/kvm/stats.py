"""KVM's binary statistics file (api.rst 4.133): the kernel's own counters, by name."""

from __future__ import annotations

import ctypes
import os

from minivmm.kvm import abi


def read_stats(fd: int) -> dict[str, int]:
    """Every cumulative one-word counter of a KVM_GET_STATS_FD file."""
    header = abi.kvm_stats_header.from_buffer_copy(os.pread(fd, ctypes.sizeof(abi.kvm_stats_header), 0))
    desc_size = ctypes.sizeof(abi.kvm_stats_desc)
    stride = desc_size + header.name_size
    table = os.pread(fd, stride * header.num_desc, header.desc_offset)
    counters: dict[str, int] = {}
    for index in range(header.num_desc):
        desc = abi.kvm_stats_desc.from_buffer_copy(table, index * stride)
        if desc.flags & abi.KVM_STATS_TYPE_MASK != abi.KVM_STATS_TYPE_CUMULATIVE or desc.size != 1:
            continue
        name = table[index * stride + desc_size : (index + 1) * stride].split(b"\0", 1)[0].decode("ascii", "replace")
        counters[name] = int.from_bytes(os.pread(fd, 8, header.data_offset + desc.offset), "little")
    return counters
