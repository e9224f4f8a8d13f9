"""What one exit to user space costs on this host: the figure that decides how fast any VMM in user space can be."""

from __future__ import annotations

import fcntl
import mmap
import statistics
import time
from ctypes import addressof, c_char

from minivmm.kvm import abi
from minivmm.kvm.abi import Exit
from minivmm.kvm.system import Kvm
from minivmm.kvm.vcpu import Vcpu

_ADDRESS = 0x1000
_GUEST = b"\xe6\x80\xeb\xfc"  # again: out 0x80, al; jmp again


def measure_exit_cost(exits: int = 2000, rounds: int = 5) -> float:
    """Nanoseconds a KVM_RUN that ends in a one-byte PIO exit takes: the median of `rounds` of `exits` each.

    The guest is two real-mode instructions, so it runs on every back end. Raises HostError where KVM is not usable.
    """
    page = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    page[_ADDRESS : _ADDRESS + len(_GUEST)] = _GUEST
    with Kvm() as kvm:
        vm = kvm.create_vm()
        try:
            vm.set_memory_region(0, 0, len(page), addressof(c_char.from_buffer(page)))
            vcpu = vm.create_vcpu(0)
            try:
                return _measure(vcpu, exits, rounds)
            finally:
                vcpu.close()
        finally:
            vm.close()


def _measure(vcpu: Vcpu, exits: int, rounds: int) -> float:
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(abi.kvm_regs(rip=_ADDRESS, rflags=2))
    if vcpu.run() is not Exit.IO:  # also warms up what the first entry allocates
        raise AssertionError("the measuring guest did not exit on its port")
    ioctl, fd, run = fcntl.ioctl, vcpu.fd, abi.KVM_RUN
    samples = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(exits):
            ioctl(fd, run)
        samples.append((time.perf_counter_ns() - start) / exits)
    return statistics.median(samples)
