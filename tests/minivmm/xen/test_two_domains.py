"""Two domains on one machine: events and grants between them, and what is left when one of them ends."""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterator

import pytest

from minivmm.memory import PAGE_SIZE
from minivmm.outcome import Outcome
from minivmm.xen.abi import Runstate
from minivmm.xen.event_abi import PortState
from minivmm.xen.grant_abi import GRANT_ENTRY, GntCopy, GntMap, GrantEntry, GrantOp, Gtf
from minivmm.xen.hypervisor import Hypervisor
from minivmm.xen.recount import recount
from tests.minivmm.xen.kernels import Guest, error

pytestmark = pytest.mark.kvm

REF = 8


@pytest.fixture
def pair(machine: Hypervisor) -> Iterator[tuple[Guest, Guest]]:
    free = machine.core.frames.free_frames
    with Guest(machine, name="left") as left, Guest(machine, name="right") as right:
        yield left, right
    assert machine.core.frames.free_frames == free


def grant(owner: Guest, to: Guest, *, page: str = "spare", flags: int = Gtf.PERMIT_ACCESS, ref: int = REF) -> None:
    """An entry of the owner's grant table, as its kernel would write it."""
    with owner.core.lock:
        entry = owner.core.grants.entry(owner.domid, ref)
    owner.core.memory.write(entry, GRANT_ENTRY.pack(GrantEntry(flags, to.domid, owner.frame(page))))


def grant_flags(owner: Guest, ref: int = REF) -> int:
    with owner.core.lock:
        entry = owner.core.grants.entry(owner.domid, ref)
    return GRANT_ENTRY.unpack(owner.core.memory.read(entry, GRANT_ENTRY.size)).flags


# -- events


@pytest.mark.svm_smoke
def test_two_domains_call_each_other_through_an_event_channel(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    turns = 20
    body = """
            dec rbx
            jne again
            shutdown
            align 8
    poll:   dq port
            dd 1, 0
            dq 0
    """
    left.load(
        f"""
            mov rbx, {turns}
            hypercall event_channel_op, 6, unbound
            record rax
            record [unbound]
            mov qword [ready], 1
    again:  hypercall sched_op, 3, poll
            mov qword [port_pending], 0
            inc qword [go]
            hypercall event_channel_op, SEND, port
            {body}
    unbound:
            dw 0x7ff0, {right.domid}
    port:   dd 0
        """
    )
    right.load(
        f"""
            mov rbx, {turns}
            hypercall event_channel_op, 0, interdomain
            record rax
            mov qword [port_pending], 0     ; a port that is bound has an event, lest one be lost
    again:  hypercall event_channel_op, SEND, port
            hypercall sched_op, 3, poll
            mov qword [port_pending], 0
            inc qword [go]
            {body}
    interdomain:
            dw {left.domid}, 0
            dd 3
    port:   dd 0
        """
    )
    left.start()
    left.wait_until_ready()
    right.start()
    assert left.finish()[0] == 0
    assert right.finish() == [0]
    assert left.word("go") == right.word("go") == turns


def test_two_domains_run_at_the_same_time(pair: tuple[Guest, Guest]) -> None:
    for guest in pair:
        guest.load("mov qword [ready], 1\nwait: cmp qword [go], 1\njne wait\nshutdown")
        guest.start()
    for guest in pair:
        guest.wait_until_ready()
    for guest in pair:
        guest.set_word("go", 1)
    for guest in pair:
        guest.finish()


def test_a_port_that_waits_for_another_domain_is_not_this_ones(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    port = left.records("hypercall event_channel_op, 6, u\nrecord [u]\nshutdown\nu: dw 0x7ff0, 0x7000\ndd 0")[0] >> 32
    recorded = right.records(
        f"hypercall event_channel_op, 0, b\nrecord rax\nshutdown\nb: dw {left.domid}, 0\ndd {port}, 0"
    )
    assert recorded == [error(errno.EINVAL)]


def test_the_port_of_a_peer_that_is_gone_waits_again(machine: Hypervisor) -> None:
    with Guest(machine) as left:
        with Guest(machine) as right:
            source = f"hypercall event_channel_op, 6, u\nrecord [u]\nshutdown\nu: dw 0x7ff0, {right.domid}\ndd 0"
            port = left.records(source)[0] >> 32
            right.records(f"hypercall event_channel_op, 0, b\nshutdown\nb: dw {left.domid}, 0\ndd {port}, 0")
            assert dict(left.core.events.ports(left.domid))[port].state == PortState.INTERDOMAIN
        assert dict(left.core.events.ports(left.domid))[port].state == PortState.UNBOUND


# -- grants


MAP = """
            hypercall grant_table_op, {op}, map, 1
            record rax
            jmp mapped
            align 8
    map:    dq spare
            dd {flags}, {ref}
            dw {dom}, 0
            dd 0
            dq 0
    unmap:  dq spare, 0
            dd 0, 0
    mapped: mov r14d, dword [map + 20]
            mov dword [unmap + 16], r14d
"""


def map_grant(owner: Guest, flags: int = GntMap.HOST_MAP, ref: int = REF) -> str:
    """Code that maps a granted frame at `spare`, and records what the call returned."""
    return MAP.format(op=GrantOp.MAP_GRANT_REF.value, flags=flags, ref=ref, dom=owner.domid)


UNMAP = f"hypercall grant_table_op, {GrantOp.UNMAP_GRANT_REF.value}, unmap, 1\nrecord rax"


def status(guest: Guest, label: str = "map") -> int:
    """The status of a map or unmap operation."""
    at = guest.word(label, 16 if label == "map" else 20) >> (16 if label == "map" else 0)
    (value,) = struct.unpack("<h", (at & 0xFFFF).to_bytes(2, "little"))
    return int(value)


@pytest.mark.svm_smoke
def test_a_granted_frame_is_shared_until_it_is_unmapped(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    grant(left, right)
    left.set_word("spare", 0x1234)
    recorded = right.records(
        f"""
            {map_grant(left)}
            record [spare]
            mov qword [spare + 8], 0x5678
            {UNMAP}
            hypercall set_trap_table, table
            mov rax, [spare]
    fault:  record 14
            shutdown
            align 8
    table:  trap 14, 0, fault
            end_of_traps
        """
    )
    assert status(right) == 0
    assert recorded == [0, 0x1234, 0, 14]
    assert left.word("spare", 8) == 0x5678
    assert grant_flags(left) == Gtf.PERMIT_ACCESS  # nobody reads or writes any more


def test_a_frame_granted_read_only_is_not_mapped_writable(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    grant(left, right, flags=Gtf.PERMIT_ACCESS | Gtf.READONLY)
    right.records(f"{map_grant(left)}\nshutdown")
    assert status(right) < 0


def test_a_read_only_mapping_cannot_be_written(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    grant(left, right)
    recorded = right.records(
        f"""
            {map_grant(left, GntMap.HOST_MAP | GntMap.READONLY)}
            hypercall set_trap_table, table
            mov rax, [spare]
            mov qword [spare], 1
    fault:  record [rsp + 16]
            {UNMAP}
            shutdown
            align 8
    table:  trap 14, 0, fault
            end_of_traps
        """
    )
    assert recorded == [0, 3, 0]


@pytest.mark.parametrize("whom", ["another", "nobody"])
def test_what_was_not_granted_to_a_domain_is_not_mapped(pair: tuple[Guest, Guest], whom: str) -> None:
    left, right = pair
    if whom == "another":
        grant(left, left)
    right.records(f"{map_grant(left)}\nshutdown")
    assert status(right) < 0
    assert recount(left.core.tables) == []


def test_data_is_copied_by_grant(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    grant(left, right)
    left.core.memory.write(left.frame("spare") * PAGE_SIZE, b"from the left")
    right.records(
        f"""
            hypercall grant_table_op, {GrantOp.COPY.value}, copy, 1
            record rax
            shutdown
            align 8
    copy:   dq {REF}
            dw {left.domid}, 5, 0, 0            ; from offset 5
            dq {right.frame("spare")}
            dw 0x7ff0, 100, 0, 0                ; to offset 100
            dw 8, {int(GntCopy.SOURCE_GREF)}, 0, 0
        """
    )
    assert right.core.memory.read(right.frame("spare") * PAGE_SIZE + 100, 8) == b"the left"


@pytest.mark.parametrize("first", ["owner", "user"])
def test_domains_that_share_a_frame_end_in_either_order(machine: Hypervisor, first: str) -> None:
    core = machine.core
    free = core.frames.free_frames
    left, right = Guest(machine), Guest(machine)
    grant(left, right)
    right.records(f"{map_grant(left)}\nmov qword [spare], 1\nshutdown")
    order = (left, right) if first == "owner" else (right, left)
    for guest in order:
        machine.destroy(guest.domain)
        assert recount(core.tables) == []
    assert core.frames.free_frames == free
    assert not core.tables.granted


# -- one ends, the other goes on


def test_a_domain_goes_on_when_another_crashes(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    left.load("mov qword [ready], 1\nwait: cmp qword [go], 1\njne wait\nrecord 1\nshutdown")
    left.start()
    left.wait_until_ready()
    assert right.run("ud2").outcome is Outcome.CRASHED
    left.set_word("go", 1)
    assert left.finish() == [1]


def test_a_domain_goes_on_when_another_is_destroyed_in_the_middle(machine: Hypervisor) -> None:
    with Guest(machine) as left:
        left.load("mov qword [ready], 1\nwait: cmp qword [go], 1\njne wait\nrecord 1\nshutdown")
        left.start()
        left.wait_until_ready()
        with Guest(machine) as right:
            right.load("mov qword [ready], 1\nspin: hypercall xen_version, 0, 0\njmp spin")
            right.start()
            right.wait_until_ready()
        left.set_word("go", 1)
        assert left.finish() == [1]


def test_a_storm_of_hypercalls_in_one_domain_lets_the_other_work(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    left.load("mov qword [ready], 1\nspin: hypercall xen_version, 0, 0\njmp spin")
    left.start()
    left.wait_until_ready()
    right.records(
        """
            mov rbx, 200
    again:  hypercall xen_version, 0, 0
            dec rbx
            jne again
            shutdown
        """
    )
    left.hypervisor.stop(left.domain)
    assert left.wait().outcome is Outcome.INTERRUPTED


def test_a_domain_says_nothing_while_it_is_paused(pair: tuple[Guest, Guest]) -> None:
    guest, _ = pair
    guest.load(
        """
            mov qword [ready], 1
    again:  hypercall console_io, 0, 2, text
            cmp qword [go], 1
            jne again
            shutdown
    text:   db 0x2e, 0x0a
        """
    )
    guest.start()
    guest.wait_until_ready()
    guest.hypervisor.pause(guest.domain)
    while guest.vcpu.runstate == Runstate.RUNNING:  # until its thread has seen it
        time.sleep(0.001)
    said = len(bytes(guest.domain.output))
    for _ in range(20):
        time.sleep(0.001)
        assert len(bytes(guest.domain.output)) == said
    guest.hypervisor.unpause(guest.domain)
    while len(bytes(guest.domain.output)) == said:
        time.sleep(0.001)
    guest.set_word("go", 1)
    guest.finish()


# -- floating point


@pytest.mark.svm_smoke
def test_sse_registers_survive_hypercalls_events_and_other_domains(pair: tuple[Guest, Guest]) -> None:
    left, right = pair
    source = """
            hypercall set_callbacks, callback, 0, 0
            mov byte [mask], 0
            mov rax, {value}
            movq xmm0, rax
            movq xmm15, rax
            mov qword [ready], 1
            mov rbx, 100
    again:  hypercall event_channel_op, SEND, port
            dec rbx
            jne again
            movq rax, xmm0
            record rax
            movq rax, xmm15
            record rax
            shutdown
    callback:
            mov byte [pending], 0
            mov qword [selector], 0
            mov qword [port_pending], 0
            return
            align 8
    port:   dd {port}
    """
    for guest, value in ((left, 0x1111_2222), (right, 0x3333_4444)):
        guest.load(source.format(value=value, port=guest.bind_ipi()))
        guest.start()
    assert left.finish() == [0x1111_2222] * 2
    assert right.finish() == [0x3333_4444] * 2


@pytest.mark.svm_smoke
def test_nothing_of_a_domains_registers_reaches_the_next_on_its_cpu(machine: Hypervisor) -> None:
    secret = 0x5EC2E7
    for _ in range(2):  # on each of the CPUs
        with Guest(machine) as first:
            first.records(
                f"""
                mov rax, {secret}
                movq xmm0, rax
                movq xmm15, rax
                hypercall set_segment_base, 0, spare
                hypercall set_segment_base, 1, spare
                hypercall set_debugreg, 0, spare
                shutdown
                """
            )
    names = ("rax", "rbx", "rcx", "rdx", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13")
    for _ in range(2):
        with Guest(machine) as second:
            recorded = second.records(
                "\n".join(f"record {name}" for name in names)
                + """
                movq rax, xmm0
                record rax
                movq rax, xmm15
                record rax
                mov ecx, 0xc0000100
                rdmsr
                record rax
                mov ecx, 0xc0000102
                rdmsr
                record rax
                hypercall get_debugreg, 0
                record rax
                shutdown
                """
            )
        assert recorded == [0] * len(recorded)
