"""Event channels (xen/event_channel.h), two-level ABI: how a domain is told that something happened.

An event is one bit. Delivery sets the port's bit in `evtchn_pending`; unless the same bit of `evtchn_mask` is set it
then sets the word's bit in the vCPU's `evtchn_pending_sel`, and if that was clear `evtchn_upcall_pending`. Whoever
turned that last one from 0 to 1 has news for the vCPU: `notify`. The guest owns all four words and may write anything
there: no decision here but that of whether to notify depends on them. The port table is the hypervisor's own.

Calls are serialised by the caller (one lock for the hypervisor); the guest's CPUs run on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH
from typing import Any

from minivmm.errors import ConfigError
from minivmm.layout import Layout
from minivmm.memory import PAGE_SIZE, GuestMemory
from minivmm.xen import event_abi as abi
from minivmm.xen.abi import XEN_LEGACY_MAX_VCPUS, Domid, SharedInfo, VcpuInfo
from minivmm.xen.atomic import AtomicMemory
from minivmm.xen.errors import HypercallError
from minivmm.xen.event_abi import EventOp, PortState

CONTROL_DOMAIN = 0  # what a guest is told is at the other end of a channel that ends in the hypervisor


@dataclass(slots=True)
class Channel:
    """One port of one domain. Only the fields its state needs mean anything."""

    state: PortState = PortState.CLOSED
    vcpu: int = 0  # whom it notifies
    remote_dom: int = 0  # UNBOUND: who may bind; INTERDOMAIN: the peer
    remote_port: int = 0  # INTERDOMAIN
    virq: int = 0  # VIRQ
    consumer: Callable[[int], None] | None = None  # INTERDOMAIN that ends in the hypervisor: called with the port


class EventDomain:
    """One domain's ports, and where its CPUs look for events."""

    def __init__(self, domid: int, vcpus: int, shared_info: int, privileged: bool, max_port: int) -> None:
        self.domid = domid
        self.shared_info = shared_info
        self.vcpu_info = [shared_info + SharedInfo.VCPU_INFO + vcpu * VcpuInfo.SIZE for vcpu in range(vcpus)]
        self.registered: set[int] = set()  # vCPUs that moved their vcpu_info
        self.privileged = privileged
        self.max_port = max_port
        self.channels: dict[int, Channel] = {}  # the ports not closed
        self.virqs: dict[tuple[int, int], int] = {}  # (vcpu, virq) to port; a global virq under vCPU 0

    def free_port(self) -> int:
        """The lowest closed port. Port 0 is never given out. Raises HypercallError ENOSPC."""
        for port in range(1, self.max_port + 1):
            if port not in self.channels:
                return port
        raise HypercallError(ENOSPC, f"domain {self.domid} has all its {self.max_port} ports in use")

    def channel(self, port: int) -> Channel | None:
        """The channel at `port`, None when it is closed. Raises HypercallError EINVAL for what is no port."""
        if not 0 <= port <= self.max_port:
            raise HypercallError(EINVAL, f"{port} is no port of domain {self.domid}")
        return self.channels.get(port)

    def check_vcpu(self, vcpu: int) -> None:
        """Raises HypercallError ENOENT when the domain has no such vCPU."""
        if not 0 <= vcpu < len(self.vcpu_info):
            raise HypercallError(ENOENT, f"domain {self.domid} has no vCPU {vcpu}")


def _nobody(_domid: int, _port: int) -> None:
    """Nobody polls."""


class EventChannels:
    """Every domain's ports.

    `notify(domid, vcpu)` is called when evtchn_upcall_pending of a vCPU goes from 0 to 1: wake it, and make the upcall
    when its mask allows. `poll(domid, port)` is called when a port becomes pending, masked or not (SCHEDOP_poll).
    """

    def __init__(
        self,
        memory: GuestMemory,
        notify: Callable[[int, int], None],
        poll: Callable[[int, int], None] = _nobody,
    ) -> None:
        self._memory = memory
        self._atomic = AtomicMemory(memory)
        self._notify = notify
        self._poll = poll
        self._domains: dict[int, EventDomain] = {}
        # The whole interface: operation, its argument's layout, and who does it. The rest is ENOSYS, FIFO included.
        self.operations: dict[int, tuple[Layout[Any], Callable[[int, Any], Any]]] = {
            EventOp.ALLOC_UNBOUND: (abi.ALLOC_UNBOUND, self.alloc_unbound),
            EventOp.BIND_INTERDOMAIN: (abi.BIND_INTERDOMAIN, self.bind_interdomain),
            EventOp.BIND_VIRQ: (abi.BIND_VIRQ, self.bind_virq),
            EventOp.BIND_PIRQ: (abi.BIND_PIRQ, self.bind_pirq),
            EventOp.BIND_IPI: (abi.BIND_IPI, self.bind_ipi),
            EventOp.CLOSE: (abi.PORT, self.close),
            EventOp.SEND: (abi.PORT, self.send),
            EventOp.STATUS: (abi.STATUS, self.status),
            EventOp.BIND_VCPU: (abi.BIND_VCPU, self.bind_vcpu),
            EventOp.UNMASK: (abi.PORT, self.unmask),
            EventOp.RESET: (abi.RESET, self.reset),
        }

    # Domains come and go

    def add_domain(
        self,
        domid: int,
        *,
        vcpus: int,
        shared_info: int,
        privileged: bool = False,
        max_port: int = abi.EVTCHN_2L_NR_CHANNELS - 1,
    ) -> None:
        """A domain with every port closed. `shared_info` is the machine address of its page; `max_port` its quota.

        Raises ConfigError for a domain that cannot be, GuestMemoryError for a shared_info outside memory.
        """
        if not 0 <= domid < Domid.FIRST_RESERVED or domid in self._domains:
            raise ConfigError(f"there can be no new domain {domid}", cause="its number is reserved or taken")
        if not 1 <= vcpus <= XEN_LEGACY_MAX_VCPUS or not 0 < max_port < abi.EVTCHN_2L_NR_CHANNELS:
            raise ConfigError(f"a domain with {vcpus} vCPUs and {max_port} ports does not fit the two-level ABI")
        if shared_info % PAGE_SIZE:
            raise ConfigError(f"shared_info at {shared_info:#x} is not a page")
        self._memory.view(shared_info, SharedInfo.SIZE).release()
        self._domains[domid] = EventDomain(domid, vcpus, shared_info, privileged, max_port)

    def remove_domain(self, domid: int) -> None:
        """The domain is dead: its channels close, and every peer is unbound again."""
        domain = self._domain(domid)
        self._close_all(domain)
        del self._domains[domid]

    def register_vcpu_info(self, domid: int, vcpu: int, address: int) -> None:
        """VCPUOP_register_vcpu_info: this vCPU's vcpu_info is at machine address `address` from now on (once).

        The caller has made sure that the frame is the domain's and stays. Everything is marked pending, so that nothing
        that arrived during the move is lost. Raises HypercallError ENOENT or EINVAL.
        """
        domain = self._domain(domid)
        domain.check_vcpu(vcpu)
        if vcpu in domain.registered or address % 8 or address % PAGE_SIZE > PAGE_SIZE - VcpuInfo.SIZE:
            raise HypercallError(EINVAL, f"vcpu_info of vCPU {vcpu} cannot move to {address:#x}")
        self._memory.write(address, self._memory.read(domain.vcpu_info[vcpu], VcpuInfo.SIZE))
        domain.registered.add(vcpu)
        domain.vcpu_info[vcpu] = address
        self._memory.write_u64(address + VcpuInfo.EVTCHN_PENDING_SEL, (1 << 64) - 1)
        self._upcall(domain, vcpu)

    def deliverable(self, domid: int, vcpu: int) -> bool:
        """Whether the vCPU has an upcall to make now: pending and not masked. Whoever makes it sets the mask first."""
        address = self._domain(domid).vcpu_info[vcpu]
        return self._atomic.test_bit(address, 0) and not self._memory.view(address + VcpuInfo.EVTCHN_UPCALL_MASK, 1)[0]

    def is_pending(self, domid: int, port: int) -> bool:
        """Whether the port's event waits, masked or not (SCHEDOP_poll). Raises HypercallError EINVAL."""
        domain = self._domain(domid)
        domain.channel(port)
        return self._atomic.test_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_PENDING, port))

    # The hypercall

    def event_channel_op(self, caller: int, cmd: int, argument: bytes) -> bytes:
        """event_channel_op: `argument` is a copy of the structure `operations[cmd]` lays out. Returns what the guest
        gets back in its place. Raises HypercallError."""
        layout, operation = self._operation(cmd)
        if len(argument) < layout.size:
            raise HypercallError(EINVAL, f"event_channel_op {cmd} with {len(argument)} bytes")
        answer = operation(caller, layout.unpack(argument))
        return argument if answer is None else layout.pack(answer)

    def argument_size(self, cmd: int) -> int:
        """Bytes to copy from the guest for operation `cmd`. Raises HypercallError ENOSYS."""
        return self._operation(cmd)[0].size

    def _operation(self, cmd: int) -> tuple[Layout[Any], Callable[[int, Any], Any]]:
        if cmd not in self.operations:
            raise HypercallError(ENOSYS, f"event_channel_op {cmd}")
        return self.operations[cmd]

    def alloc_unbound(self, caller: int, args: abi.AllocUnbound) -> abi.AllocUnbound:
        """A port of `dom` that `remote_dom` may bind to."""
        domain = self._target(caller, args.dom)
        port = domain.free_port()
        remote = caller if args.remote_dom == Domid.SELF else args.remote_dom
        domain.channels[port] = Channel(PortState.UNBOUND, remote_dom=remote)
        return args._replace(port=port)

    def bind_interdomain(self, caller: int, args: abi.BindInterdomain) -> abi.BindInterdomain:
        """Joins a fresh local port to an unbound remote one, and sets it pending: what the peer sent to nobody before
        must not be lost."""
        domain = self._domain(caller)
        remote = self._domain(caller if args.remote_dom == Domid.SELF else args.remote_dom)
        local_port = domain.free_port()
        peer = remote.channel(args.remote_port)
        if peer is None or peer.state != PortState.UNBOUND or peer.remote_dom != caller:
            raise HypercallError(EINVAL, f"port {args.remote_port} of domain {remote.domid} does not wait for {caller}")
        peer.state, peer.remote_port = PortState.INTERDOMAIN, local_port
        domain.channels[local_port] = Channel(
            PortState.INTERDOMAIN, remote_dom=remote.domid, remote_port=args.remote_port
        )
        self._set_pending(domain, local_port)
        return args._replace(local_port=local_port)

    def bind_virq(self, caller: int, args: abi.BindVirq) -> abi.BindVirq:
        """A port for a virtual interrupt. A global one starts on vCPU 0."""
        domain = self._domain(caller)
        if args.virq >= abi.NR_VIRQS or (args.virq not in abi.PER_VCPU_VIRQS and args.vcpu):
            raise HypercallError(EINVAL, f"virq {args.virq} on vCPU {args.vcpu}")
        domain.check_vcpu(args.vcpu)
        if (args.vcpu, args.virq) in domain.virqs:
            raise HypercallError(EEXIST, f"virq {args.virq} of vCPU {args.vcpu} is bound")
        port = domain.free_port()
        domain.channels[port] = Channel(PortState.VIRQ, vcpu=args.vcpu, virq=args.virq)
        domain.virqs[args.vcpu, args.virq] = port
        return args._replace(port=port)

    def bind_pirq(self, caller: int, args: abi.BindPirq) -> None:
        """No domain has physical interrupts here: every number is out of range."""
        raise HypercallError(EINVAL, f"domain {caller} has no pirq {args.pirq}")

    def bind_ipi(self, caller: int, args: abi.BindIpi) -> abi.BindIpi:
        """A port by which a domain's CPUs interrupt this one of them."""
        domain = self._domain(caller)
        domain.check_vcpu(args.vcpu)
        port = domain.free_port()
        domain.channels[port] = Channel(PortState.IPI, vcpu=args.vcpu)
        return args._replace(port=port)

    def close(self, caller: int, args: abi.Port) -> None:
        """Closes a port; its peer waits for a new connection."""
        domain = self._domain(caller)
        if domain.channel(args.port) is None:
            raise HypercallError(EINVAL, f"port {args.port} of domain {caller} is closed")
        self._close(domain, args.port)

    def send(self, caller: int, args: abi.Port) -> None:
        """An event to the other end. To nobody, while unbound: the header lets it be lost."""
        domain = self._domain(caller)
        channel = domain.channel(args.port)
        match channel.state if channel else PortState.CLOSED:
            case PortState.INTERDOMAIN if channel and channel.consumer:
                channel.consumer(args.port)
            case PortState.INTERDOMAIN if channel:
                self._set_pending(self._domains[channel.remote_dom], channel.remote_port)
            case PortState.IPI:
                self._set_pending(domain, args.port)
            case PortState.UNBOUND:
                pass
            case _:
                raise HypercallError(EINVAL, f"port {args.port} of domain {caller} cannot send")

    def status(self, caller: int, args: abi.Status) -> abi.Status:
        """What is at a port."""
        domain = self._known(caller, args.dom)
        channel = domain.channel(args.port) or Channel()
        self._permit(caller, domain)
        remote = channel.virq if channel.state == PortState.VIRQ else channel.remote_dom
        remote_port = channel.remote_port if channel.state == PortState.INTERDOMAIN else 0
        return args._replace(status=channel.state, vcpu=channel.vcpu, remote=remote, remote_port=remote_port)

    def bind_vcpu(self, caller: int, args: abi.BindVcpu) -> None:
        """Another vCPU to notify. IPIs and per-vCPU virqs stay where they are."""
        domain = self._domain(caller)
        domain.check_vcpu(args.vcpu)
        channel = domain.channel(args.port)
        if (
            channel is None
            or channel.state == PortState.IPI
            or (channel.state == PortState.VIRQ and channel.virq in abi.PER_VCPU_VIRQS)
        ):
            raise HypercallError(EINVAL, f"port {args.port} of domain {caller} cannot move to another vCPU")
        channel.vcpu = args.vcpu

    def unmask(self, caller: int, args: abi.Port) -> None:
        """Clears the port's mask bit, and delivers what waited behind it."""
        domain = self._domain(caller)
        channel = domain.channel(args.port)
        if channel is None:
            return
        if self._atomic.test_and_clear_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_MASK, args.port)) and (
            self._atomic.test_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_PENDING, args.port))
        ):
            self._select(domain, channel.vcpu, args.port)

    def reset(self, caller: int, args: abi.Reset) -> None:
        """Closes every port of `dom`."""
        self._close_all(self._target(caller, args.dom))

    # The hypervisor's own side

    def attach(self, domid: int, consumer: Callable[[int], None]) -> int:
        """A port of the domain whose other end is the hypervisor (console, xenstore): what the guest sends there calls
        `consumer(port)`; `raise_port` is the way back. Raises HypercallError ENOSPC."""
        domain = self._domain(domid)
        port = domain.free_port()
        domain.channels[port] = Channel(PortState.INTERDOMAIN, remote_dom=CONTROL_DOMAIN, consumer=consumer)
        return port

    def raise_port(self, domid: int, port: int) -> None:
        """An event from the hypervisor on a port it is attached to. Nothing when the guest has closed it."""
        domain = self._domain(domid)
        channel = domain.channel(port)
        if channel and channel.consumer:
            self._set_pending(domain, port)

    def raise_virq(self, domid: int, virq: int, vcpu: int = 0) -> None:
        """A virtual interrupt for a domain (for one of its vCPUs, when per-vCPU). Nothing when it is not bound."""
        domain = self._domain(domid)
        port = domain.virqs.get((vcpu if virq in abi.PER_VCPU_VIRQS else 0, virq))
        if port is not None:
            self._set_pending(domain, port)

    def ports(self, domid: int) -> Iterator[tuple[int, Channel]]:
        """The open ports of a domain, for a crash dump and for tests."""
        yield from sorted(self._domain(domid).channels.items())

    # Who may, and the bits

    def _domain(self, domid: int) -> EventDomain:
        if domid not in self._domains:
            raise HypercallError(ESRCH, f"there is no domain {domid}")
        return self._domains[domid]

    def _known(self, caller: int, domid: int) -> EventDomain:
        return self._domain(caller if domid == Domid.SELF else domid)

    def _permit(self, caller: int, target: EventDomain) -> None:
        if target.domid != caller and not self._domain(caller).privileged:
            raise HypercallError(EPERM, f"domain {caller} has no say over domain {target.domid}")

    def _target(self, caller: int, domid: int) -> EventDomain:
        target = self._known(caller, domid)
        self._permit(caller, target)
        return target

    def _close_all(self, domain: EventDomain) -> None:
        for port in sorted(domain.channels):
            self._close(domain, port)

    def _close(self, domain: EventDomain, port: int) -> None:
        channel = domain.channels.pop(port)
        if channel.state == PortState.VIRQ:
            # A global virq is registered under vCPU 0 wherever its port has moved since.
            del domain.virqs[channel.vcpu if channel.virq in abi.PER_VCPU_VIRQS else 0, channel.virq]
        elif channel.state == PortState.INTERDOMAIN and channel.consumer is None:
            peer = self._domains[channel.remote_dom].channels[channel.remote_port]
            peer.state, peer.remote_dom, peer.remote_port = PortState.UNBOUND, domain.domid, 0
        # The next owner of the number must not find this one's event.
        self._atomic.test_and_clear_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_PENDING, port))

    def _set_pending(self, domain: EventDomain, port: int) -> None:
        if self._atomic.test_and_set_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_PENDING, port)):
            return
        if not self._atomic.test_bit(*_bit(domain.shared_info + SharedInfo.EVTCHN_MASK, port)):
            self._select(domain, domain.channels[port].vcpu, port)
        self._poll(domain.domid, port)

    def _select(self, domain: EventDomain, vcpu: int, port: int) -> None:
        if not self._atomic.test_and_set_bit(domain.vcpu_info[vcpu] + VcpuInfo.EVTCHN_PENDING_SEL, port // 64):
            self._upcall(domain, vcpu)

    def _upcall(self, domain: EventDomain, vcpu: int) -> None:
        if not self._atomic.test_and_set_bit(domain.vcpu_info[vcpu] + VcpuInfo.EVTCHN_UPCALL_PENDING, 0):
            self._notify(domain.domid, vcpu)


def _bit(words: int, port: int) -> tuple[int, int]:
    """The address of a port's word in an array of 64-bit words, and its bit there."""
    return words + port // 64 * 8, port % 64
