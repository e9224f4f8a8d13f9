"""Each lab with a hypervisor that breaks the claim: the verdict says so, and every experiment comes to an end."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBUSY, EPERM
from typing import Any

import pytest

from minivmm.emulator.translator.code import TranslatedCode
from minivmm.xen import calls, traps
from minivmm.xen.calls import TABLE
from minivmm.xen.core import Core
from minivmm.xen.errors import HypercallError
from minivmm.xen.event_abi import Port, PortState
from minivmm.xen.events import EventChannels
from minivmm.xen.frame_words import BOTH, REF_ONE, PageType
from minivmm.xen.frames import FrameTable
from minivmm.xen.hypercall_abi import Hypercall
from minivmm.xen.page_tables import PageTables
from minivmm.xen.vcpu import VirtualCpu
from toolkit.labs.host import this_host
from toolkit.labs.registry import labs
from toolkit.labs.run import Status, run

pytestmark = pytest.mark.kvm

Patch = pytest.MonkeyPatch
DEADLINE = 2.0  # seconds that a guest which waits in vain is waited for
PATIENCE = {"translation": 60.0}  # nobody waits there, and mistakes are slow


def a_multicall_that_stops_half_way(patch: Patch) -> None:
    entry = TABLE[Hypercall.MULTICALL]
    half = entry._replace(handler=lambda vcpu, calls, count: entry.handler(vcpu, calls, count // 2))
    patch.setitem(TABLE, Hypercall.MULTICALL, half)


def every_number_a_hypercall(patch: Patch) -> None:
    patch.setitem(TABLE, 60, calls.Entry("nothing", 0, lambda _vcpu: 0))


def an_update_that_is_not_made(patch: Patch) -> None:
    entry = TABLE[Hypercall.MMU_UPDATE]
    real = entry.handler

    def forgetful(vcpu: VirtualCpu, requests: int, count: int, done: int, target: int) -> int:
        return real(vcpu, requests, count - (count == 64), done, target)

    patch.setitem(TABLE, Hypercall.MMU_UPDATE, entry._replace(handler=forgetful))


def page_tables_may_be_writable(patch: Patch) -> None:
    real = FrameTable.take

    def lax(self: FrameTable, domid: int, mfn: int, page_type: int) -> None:
        try:
            real(self, domid, mfn, page_type)
        except HypercallError as refused:
            if refused.errno != EBUSY or page_type != PageType.WRITABLE:
                raise
            self.state[mfn] += BOTH

    patch.setattr(FrameTable, "take", lax)


def frames_may_be_anybodys(patch: Patch) -> None:
    real = FrameTable.take_leaf

    def lax(self: FrameTable, domid: int, entry: int) -> None:
        try:
            real(self, domid, entry)
        except HypercallError as refused:
            if refused.errno != EPERM:
                raise
            self.state[entry >> 12 & (1 << 40) - 1] += REF_ONE

    patch.setattr(FrameTable, "take_leaf", lax)


def stores_are_not_checked(patch: Patch) -> None:
    def lax(self: PageTables, _domid: int, address: int, value: int, size: int) -> None:
        self.memory.write(address, value.to_bytes(size, "little"))

    patch.setattr(PageTables, "emulate_store", lax)


def events_go_to_another_port(patch: Patch) -> None:
    real = EventChannels.send

    def misdirected(self: EventChannels, caller: int, args: Port) -> None:
        channel = self._domain(caller).channel(args.port)
        if channel is None or channel.state != PortState.INTERDOMAIN or channel.consumer is not None:
            real(self, caller, args)
        else:
            self._set_pending(self._domain(channel.remote_dom), channel.remote_port + 1)

    patch.setattr(EventChannels, "send", misdirected)


def masks_mask_nothing(patch: Patch) -> None:
    real = EventChannels._set_pending

    def eager(self: EventChannels, domain: Any, port: int) -> None:
        real(self, domain, port)
        self._select(domain, domain.channels[port].vcpu, port)

    patch.setattr(EventChannels, "_set_pending", eager)


def nobody_is_woken(patch: Patch) -> None:
    patch.setattr(Core, "_notify", lambda *_: None)


def cr2_is_not_passed(patch: Patch) -> None:
    seen = vars(VirtualCpu)["fault_address"].fget
    patch.setattr(VirtualCpu, "fault_address", property(seen, lambda *_: None))


def an_invalid_opcode_is_called_a_protection_fault(patch: Patch) -> None:
    real = traps.bounce

    def mistaken(vcpu: VirtualCpu, vector: int, error_code: int = 0, address: int = 0) -> None:
        real(vcpu, 13 if vector == 6 else vector, error_code, address)

    patch.setattr(traps, "bounce", mistaken)


def a_system_call_is_answered_by_the_hypervisor(patch: Patch) -> None:
    real = traps.system_call

    def helpful(vcpu: VirtualCpu) -> None:
        if vcpu.regs.rax == 110:
            vcpu.regs.rax = 0
        else:
            real(vcpu)

    patch.setattr(traps, "system_call", helpful)


def jumps_are_never_chained(patch: Patch) -> None:
    patch.setattr(TranslatedCode, "chain", lambda *_: None)


def stores_into_code_are_not_noticed(patch: Patch) -> None:
    patch.setattr(TranslatedCode, "note_store", lambda *_: False)
    patch.setattr(TranslatedCode, "fence", lambda _: None)


@pytest.mark.parametrize(
    ("name", "mistake", "broken"),
    [
        ("translation", jumps_are_never_chained, "translated, nearly nothing"),
        ("translation", stores_into_code_are_not_noticed, "a program that overwrites itself"),
        ("hypercalls", a_multicall_that_stops_half_way, "multicall of 64"),
        ("hypercalls", every_number_a_hypercall, "a hypercall that does not exist"),
        ("hypercalls", an_update_that_is_not_made, "mmu_update with a list"),
        ("direct-paging", page_tables_may_be_writable, "every attempt is refused"),
        ("direct-paging", frames_may_be_anybodys, "every attempt is refused"),
        ("direct-paging", stores_are_not_checked, "every attempt is refused"),
        ("event-channels", events_go_to_another_port, "every bit is what the ABI says"),
        ("event-channels", masks_mask_nothing, "every bit is what the ABI says"),
        ("event-channels", nobody_is_woken, "both domains go on to the end"),
        ("interrupt-path", cr2_is_not_passed, "a read of kernel memory (#PF): it read the address touched"),
        ("interrupt-path", an_invalid_opcode_is_called_a_protection_fault, "an invalid opcode (#UD): next runs"),
        ("interrupt-path", a_system_call_is_answered_by_the_hypervisor, "a system call: next runs"),
    ],
)
def test_a_hypervisor_that_breaks_the_claim_fails_the_lab(
    name: str, mistake: Callable[[Patch], None], broken: str, monkeypatch: Patch
) -> None:
    mistake(monkeypatch)
    result = run(labs()[name], this_host()._replace(deadline=PATIENCE.get(name, DEADLINE)))
    assert result.status is Status.FAILS
    statements = [check.statement for check in result.verdict.checks if not check.holds]
    assert any(statement.startswith(broken) for statement in statements), result
