"""What a hypercall costs, and what the work of a domain costs that goes through one: each against the bare exit.

The bare exit is a loop at ring 3, `out; jmp`, and in Python an ioctl a turn that reads the seven registers of a
hypercall and writes its result: what every way of answering one must do. A domain's own time is from its first
instruction to its end, less that of the same domain making no call. Rounds of all alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from fcntl import ioctl

import guest_os
from benchmarks import Effort, Figure
from benchmarks.deprivileged import OUT_LOOP, Ring3, timed
from benchmarks.sessions import measure
from benchmarks.statistics import Summary, summarize
from minivmm.boot import xen_image
from minivmm.errors import HostError
from minivmm.kvm import abi
from minivmm.kvm.abi import Run
from minivmm.outcome import Outcome
from minivmm.xen.exitless import pays
from minivmm.xen.hypervisor import Hypervisor
from toolkit.compare.techniques import BY_NAME

MACHINE, DOMAIN = 64 << 20, 32 << 20  # bytes of memory
PEER = "the bare exit, its registers read and one written"
# Name, call, vCPUs, exitless, calls: of guests/hypercalls.c.
CALLS = (
    ("null hypercall", "null", 1, False, 2000),
    ("null hypercall, exitless", "null", 1, True, 40_000),
    ("event sent to another vCPU", "send", 2, False, 2000),
    ("update_va_mapping", "map", 1, False, 1280),
    ("entry in a list of 64", "list", 1, False, 12_800),
)
_REGISTERS = [
    (Run.SYNC_REGS + getattr(abi.kvm_regs, name).offset) // 8
    for name in ("rax", "rdi", "rsi", "rdx", "r10", "r8", "r9")
]
_DIRTY = Run.DIRTY_REGS // 8


def run(effort: Effort) -> list[Figure]:
    """Microseconds a call and a kernel operation; unprivileged work as a ratio to the host's own."""
    calls = [call for call in CALLS if not call[3] or pays()]
    samples: dict[str, list[float]] = {name: [] for name in ("bare", *(call[0] for call in calls))}
    machine = Ring3()
    try:
        for _ in range(effort.rounds):
            samples["bare"].append(_bare(machine))
            for name, call, vcpus, exitless, count in calls:
                samples[name].append(_calls(call, vcpus, exitless, count))
    finally:
        machine.close()
    summaries = {name: summarize(taken) for name, taken in samples.items()}
    return [*_hypercalls(summaries), *_inside(effort, summaries["bare"]), *_unprivileged(effort)]


def _hypercalls(summaries: dict[str, Summary]) -> list[Figure]:
    bare, single = summaries["bare"], summaries["update_va_mapping"]
    null = summaries["null hypercall"]
    figures = [
        _figure("null hypercall", null, PEER, bare, "at most 1.3x", null.median <= 1.3 * bare.median),
        _figure("event sent to another vCPU", summaries["event sent to another vCPU"], PEER, bare),
        _figure("update_va_mapping", single, PEER, bare),
    ]
    batched = summaries["entry in a list of 64"]
    figures.append(
        _figure(
            *("entry in a list of 64", batched, "update_va_mapping", single, "at least 8x cheaper"),
            8 * batched.median <= single.median,
        )
    )
    if exitless := summaries.get("null hypercall, exitless"):
        cheap = 10 * exitless.median <= null.median
        figures.append(_figure("null hypercall, exitless", exitless, "by an exit", null, "at least 10x cheaper", cheap))
    return figures


def _figure(
    name: str, value: Summary, peer: str, peer_value: Summary, bound: str = "", met: bool | None = None
) -> Figure:
    return Figure(f"domain: {name}", "us", *value, peer, *peer_value, bound, met)


def _bare(machine: Ring3) -> float:
    machine.load(OUT_LOOP)
    fd, run, run64, registers, result = machine.vcpu.fd, abi.KVM_RUN, machine.vcpu.run64, _REGISTERS, _REGISTERS[0]

    def turn() -> None:
        ioctl(fd, run)
        _ = [run64[register] for register in registers]
        run64[result] = 0
        run64[_DIRTY] = abi.KVM_SYNC_X86_REGS

    return timed(turn)


def _calls(call: str, vcpus: int, exitless: bool, count: int) -> float:
    """Microseconds one of `count` calls takes. Raises HostError when the domain does not end well."""
    kernel = xen_image.read(guest_os.image("hypercalls", "xen"))
    seconds = []
    with Hypervisor(MACHINE, cpus=vcpus, exitless=exitless) as hypervisor:
        for calls in (0, count):
            cmdline = f"call={call} count={calls}".encode()
            domain = hypervisor.create_domain(kernel, DOMAIN, vcpus=vcpus, cmdline=cmdline)
            result = hypervisor.run(domain)
            hypervisor.destroy(domain)
            if result.outcome is not Outcome.SHUTDOWN:
                raise HostError(f"a domain that makes hypercalls ended as {result.outcome.value}", cause=result.detail)
            seconds.append(result.seconds)
    return (seconds[1] - seconds[0]) / count * 1e6


def _inside(effort: Effort, bare: Summary) -> list[Figure]:
    """What the kernel of a domain does for its programs, as the comparison measures it."""
    names = {"syscall": "system call of a program", "pgfault": "page fault of a program"}
    results = _measured(["paravirt"], list(names), effort)
    return [_figure(name, Summary(*results["paravirt", workload]), PEER, bare) for workload, name in names.items()]


def _unprivileged(effort: Effort) -> list[Figure]:
    names = ["cpu", "memory"]
    results = _measured(["native", "paravirt"], names, effort)
    figures = []
    for name in names:
        value, peer = Summary(*results["paravirt", name]), Summary(*results["native", name])
        within = value.median - value.mad <= 1.02 * (peer.median + peer.mad)
        figures.append(_figure(f"{name} workload", value, "native", peer, "1.0x within noise", within))
    return figures


def _measured(
    techniques: Sequence[str], workloads: Sequence[str], effort: Effort
) -> dict[tuple[str, str], tuple[float, float]]:
    """Microseconds an operation, and their spread."""
    results = measure([BY_NAME[name] for name in techniques], workloads, effort)
    return {cell: ((result.median or 0.0) / 1e3, (result.mad or 0.0) / 1e3) for cell, result in results.items()}
