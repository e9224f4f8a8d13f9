"""Thin, typed bindings for the Linux KVM API: ioctl numbers, structures, Kvm / Vm / Vcpu, and nothing above them.

abi.py     linux/kvm.h under its own names
ioctl.py   one call, and what its failure means
system.py  Kvm: /dev/kvm      vm.py  Vm      vcpu.py  Vcpu      stats.py  the kernel's counters
kick.py    getting a vCPU out of KVM_RUN
    closing.py closing a VM without waiting for it      exit_cost.py what an exit costs here
"""
