"""memory_op (xen/include/public/memory.h): the structures in guest memory around minivmm/xen/memory.py."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable

from minivmm.boot.linux64 import BOOT_E820_ENTRY
from minivmm.xen import memory_abi as abi
from minivmm.xen.calls.lists import own
from minivmm.xen.errors import HypercallError
from minivmm.xen.memory import MAX_ORDER
from minivmm.xen.memory_abi import MemoryOp, XenMemoryReservation
from minivmm.xen.vcpu import VirtualCpu

ADDRESS_BITS = 0xFF  # of mem_flags: XENMEMF_get_address_bits
CHUNK = 512  # extents whose list is copied at once
MAX_FRAMES = 1 << 14  # a call changes hands of: a guest splits more, as it must where memory is short
PARTS_AT_A_TIME = 16  # of an exchange
MAX_SEARCHES = 128  # for contiguous or low frames, one a part of an exchange: each looks through the frame table


def memory_op(vcpu: VirtualCpu, cmd: int, arg: int) -> int:
    """The value for RAX. Raises HypercallError."""
    memory, pages, domid = vcpu.core.memory_op, vcpu.pages, vcpu.domain.domid
    match cmd & 0xFFFF_FFFF:
        case MemoryOp.INCREASE_RESERVATION | MemoryOp.DECREASE_RESERVATION | MemoryOp.POPULATE_PHYSMAP as operation:
            return _reservation(vcpu, operation, arg)
        case MemoryOp.EXCHANGE:
            return _exchange(vcpu, arg)
        case MemoryOp.MAXIMUM_RAM_PAGE:
            return memory.maximum_ram_page()
        case MemoryOp.CURRENT_RESERVATION:
            own(vcpu, pages.read_record(arg, abi.XEN_MEMORY_DOMAIN).domid)
            return memory.current_reservation(domid)
        case MemoryOp.MAXIMUM_RESERVATION:
            own(vcpu, pages.read_record(arg, abi.XEN_MEMORY_DOMAIN).domid)
            return memory.maximum_reservation(domid)
        case MemoryOp.MAXIMUM_GPFN:
            own(vcpu, pages.read_record(arg, abi.XEN_MEMORY_DOMAIN).domid)
            return memory.maximum_gpfn(vcpu.domain.shared_info)
        case MemoryOp.MEMORY_MAP:
            asked = pages.read_record(arg, abi.XEN_MEMORY_MAP)
            entries = memory.memory_map(domid)[: asked.nr_entries]
            pages.write(asked.buffer, BOOT_E820_ENTRY.pack_all(entries))
            pages.write(arg, abi.XEN_MEMORY_MAP.pack(asked._replace(nr_entries=len(entries))))
        case MemoryOp.MACHPHYS_MAPPING:
            pages.write(arg, abi.XEN_MACHPHYS_MAPPING.pack(memory.machphys_mapping()))
        case MemoryOp.MACHPHYS_MFN_LIST:
            wanted = pages.read_record(arg, abi.XEN_MACHPHYS_MFN_LIST)
            extents = memory.machphys_mfn_list(wanted.max_extents)
            pages.write(wanted.extent_start, _packed(extents))
            pages.write(arg, abi.XEN_MACHPHYS_MFN_LIST.pack(wanted._replace(nr_extents=len(extents))))
        case MemoryOp.MACHINE_MEMORY_MAP | MemoryOp.SET_MEMORY_MAP:
            raise HypercallError(errno.EPERM, f"memory_op {cmd} is a privileged domain's")
        case _:
            raise HypercallError(errno.ENOSYS, f"memory_op {cmd} is not there")
    return 0


def _reservation(vcpu: VirtualCpu, operation: int, arg: int) -> int:
    """ "Returns the number of extents successfully allocated or freed": 0, as Xen does, for anything that is wrong, and
    the reason is only counted."""
    done = 0
    try:
        reservation = vcpu.pages.read_record(arg, abi.XEN_MEMORY_RESERVATION)
        own(vcpu, reservation.domid)
        if reservation.extent_order > MAX_ORDER:
            raise HypercallError(errno.EPERM, f"extents of order {reservation.extent_order}")
        if operation == MemoryOp.POPULATE_PHYSMAP and reservation.mem_flags & abi.XENMEMF_POPULATE_ON_DEMAND:
            raise HypercallError(errno.EINVAL, "no domain populates itself on demand")
        total = min(reservation.nr_extents, MAX_FRAMES >> reservation.extent_order)
        one_chunk = _CHUNKS[operation]
        while done < total and vcpu.domain.end is None:
            count = min(CHUNK, total - done)
            completed = one_chunk(vcpu, reservation, done, count)
            done += completed
            if completed < count:
                raise HypercallError(errno.ENOMEM, "not all extents could be had, or given back")
            if done < total:
                vcpu.core.let_others_in()
    except HypercallError as refused:
        vcpu.domain.refused.count(f"memory_op {operation}: {refused.message}")
    return done


def _increase(vcpu: VirtualCpu, asked: XenMemoryReservation, done: int, count: int) -> int:
    """ "OUT: MFN (*not* GMFN) bases of extents that were allocated", for whoever wants to know."""
    at = asked.extent_start + 8 * done
    if asked.extent_start:
        _check_writable(vcpu, at, count)
    mfns = vcpu.core.memory_op.increase_reservation(
        vcpu.domain.domid, count, asked.extent_order, asked.mem_flags & ADDRESS_BITS
    )
    if asked.extent_start:
        vcpu.pages.write(at, _packed(mfns))
    return len(mfns)


def _populate(vcpu: VirtualCpu, asked: XenMemoryReservation, done: int, count: int) -> int:
    """ "IN: GPFN bases of extents to populate with memory. OUT: GMFN bases of extents that were allocated"."""
    at = asked.extent_start + 8 * done
    pfns = _check_writable(vcpu, at, count)
    mfns = vcpu.core.memory_op.populate_physmap(
        vcpu.domain.domid, pfns, asked.extent_order, asked.mem_flags & ADDRESS_BITS
    )
    vcpu.pages.write(at, _packed(mfns))
    return len(mfns)


def _decrease(vcpu: VirtualCpu, asked: XenMemoryReservation, done: int, count: int) -> int:
    """ "IN: GMFN bases of extents to free"."""
    mfns = _numbers(vcpu.pages.read(asked.extent_start + 8 * done, 8 * count))
    return vcpu.core.memory_op.decrease_reservation(vcpu.domain.domid, mfns, asked.extent_order)


_CHUNKS: dict[int, Callable[[VirtualCpu, XenMemoryReservation, int, int], int]] = {
    MemoryOp.INCREASE_RESERVATION: _increase,
    MemoryOp.DECREASE_RESERVATION: _decrease,
    MemoryOp.POPULATE_PHYSMAP: _populate,
}


def _exchange(vcpu: VirtualCpu, arg: int) -> int:
    """In parts of one extent of the larger of the two sizes, each done whole or not at all; nr_exchanged, "Number of
    input extents that were successfully exchanged", is stored whatever happens."""
    record = vcpu.pages.read_record(arg, abi.XEN_MEMORY_EXCHANGE)
    own(vcpu, record.in_domid)
    if record.in_domid != record.out_domid or record.nr_exchanged > record.in_nr_extents:
        raise HypercallError(errno.EINVAL, "an exchange between two domains, or one that is over before it begins")
    order, out_order = record.in_extent_order, record.out_extent_order
    if max(order, out_order) > MAX_ORDER:
        raise HypercallError(errno.EPERM, f"extents of order {max(order, out_order)}")
    if record.in_nr_extents << order != record.out_nr_extents << out_order:
        raise HypercallError(errno.EINVAL, "an exchange of different numbers of frames")
    ins, outs = 1 << max(out_order - order, 0), 1 << max(order - out_order, 0)
    at_field = arg + abi.XEN_MEMORY_EXCHANGE.size - 8
    done = record.nr_exchanged & ~(ins - 1)
    bits = record.out_mem_flags & ADDRESS_BITS
    parts = MAX_FRAMES >> max(order, out_order)
    end = min(record.in_nr_extents, done + ins * (min(parts, MAX_SEARCHES) if out_order or bits else parts))
    try:
        while done < end and vcpu.domain.end is None:
            mfns = _numbers(vcpu.pages.read(record.in_extent_start + 8 * done, 8 * ins))
            at = record.out_extent_start + 8 * (done * outs // ins)
            pfns = _check_writable(vcpu, at, outs)
            new = vcpu.core.memory_op.exchange(vcpu.domain.domid, mfns, order, pfns, out_order, bits)
            vcpu.pages.write(at, _packed(new))
            done += ins
            if not done // ins % PARTS_AT_A_TIME:
                vcpu.core.let_others_in()
    finally:
        vcpu.pages.write(at_field, struct.pack("<Q", done))
    if done < record.in_nr_extents:
        raise HypercallError(errno.E2BIG, "an exchange of more than is done at once")
    return 0


def _check_writable(vcpu: VirtualCpu, address: int, count: int) -> tuple[int, ...]:
    """The `count` numbers at `address`, which the domain could also store there: asked before anything is done, so that
    no frame changes hands and nobody is told which. Raises HypercallError(EFAULT)."""
    raw = vcpu.pages.read(address, 8 * count)
    vcpu.pages.write(address, raw)
    return _numbers(raw)


def _numbers(raw: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(raw) // 8}Q", raw)


def _packed(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)
