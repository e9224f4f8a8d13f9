"""Why KVM cannot go on with a vCPU, in words."""

from __future__ import annotations

from minivmm.deprivileged.decode import LONGEST_INSTRUCTION
from minivmm.kvm.abi import Exit, Run, kvm_regs
from minivmm.kvm.vcpu import Vcpu


def why_stopped(vcpu: Vcpu, reason: int, root: int) -> str:
    """What exit `reason` of a vCPU whose registers are shared says; `root` is the address space it ran in."""
    at = f"at RIP {vcpu.run64[(Run.SYNC_REGS + kvm_regs.rip.offset) // 8]:#x}"
    match reason:
        case Exit.SHUTDOWN:
            return f"the CPU shut down {at}: is the monitor installed in root {root:#x}?"
        case Exit.INTERNAL_ERROR:
            code = bytes(vcpu.run_bytes[Run.EMULATION_INSN_BYTES :][:LONGEST_INSTRUCTION])
            return f"KVM internal error {vcpu.run32[Run.INTERNAL_SUBERROR // 4]} {at}, code {code.hex(' ')}"
        case Exit.FAIL_ENTRY:
            return f"the CPU refused the state {at}: {vcpu.run64[Run.FAIL_ENTRY_REASON // 8]:#x}"
    return f"KVM_EXIT_{Exit(reason).name} {at}"
