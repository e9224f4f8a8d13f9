"""One KVM ioctl, and what its failure means.

The call goes through `fcntl.ioctl`: it releases the interpreter lock, and KVM_RUN *without* a third argument costs
what C costs, where ctypes adds half a microsecond (docs/backends.md).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import Any

from minivmm.errors import KvmError
from minivmm.kvm import abi

_LIBC = ctypes.CDLL(None, use_errno=True)

# Why a call fails, by what the kernel answers, for the calls where that is worth saying.
_CAUSES: dict[tuple[int, int], tuple[str, str]] = {
    (abi.KVM_CREATE_VM, errno.EBUSY): (
        "another hypervisor (VirtualBox, VMware) holds the CPU's virtualization extension",
        "stop it, or unload its module: lsmod | grep -E 'vbox|vmmon'",
    ),
    (abi.KVM_CREATE_VM, errno.ENODEV): (
        "KVM is loaded and the CPU's virtualization extension is off",
        "enable VT-x or AMD-V (SVM) in the firmware setup",
    ),
    (abi.KVM_CREATE_VM, errno.ENOMEM): ("the host is out of memory for a VM", "free -h"),
    (abi.KVM_CREATE_VM, errno.EMFILE): ("this process has no file descriptor left", "ulimit -n 4096"),
    (abi.KVM_CREATE_VCPU, errno.EEXIST): ("a vCPU with this id exists already", ""),
    (abi.KVM_CREATE_VCPU, errno.EINVAL): ("more vCPUs than this host's KVM allows", "vtk doctor"),
    (abi.KVM_SET_USER_MEMORY_REGION, errno.EEXIST): ("the region overlaps another slot", ""),
    (abi.KVM_SET_USER_MEMORY_REGION, errno.EINVAL): (
        "the address or size is not whole pages, or the slot is out of range",
        "",
    ),
    (abi.KVM_RUN, errno.EFAULT): ("guest memory whose host page is unmapped or protected", ""),
    (abi.KVM_CREATE_IRQCHIP, errno.EEXIST): ("the machine has an interrupt controller already", ""),
    (abi.KVM_IOEVENTFD, errno.ENOSPC): ("the VM has as many devices on its bus as KVM allows", ""),
}
_CAUSES_BY_ERRNO: dict[int, tuple[str, str]] = {
    errno.EACCES: ("this user may not use /dev/kvm", "sudo usermod -aG kvm $USER, then log in again"),
    errno.EPERM: ("this user may not do that", "run as root, or join the group kvm"),
    errno.ENOTTY: ("this kernel's KVM does not know the call", "vtk doctor"),
    errno.ENOMEM: ("the host is out of memory", "free -h"),
    errno.ENXIO: ("the machine lacks the part this call speaks to (an interrupt controller, mostly)", ""),
}


def explain(request: int, number: int, subject: str) -> KvmError:
    """The typed error for `request` on `subject` (\"vCPU 0\") that failed with errno `number`."""
    name = abi.IOCTL_NAMES.get(request, f"ioctl {request:#x}")
    cause, remedy = _CAUSES.get((request, number)) or _CAUSES_BY_ERRNO.get(number) or ("", "")
    symbol = errno.errorcode.get(number, str(number))
    return KvmError(
        name,
        number,
        f"{name} on {subject} failed: {symbol} ({os.strerror(number)})",
        cause=cause,
        remedy=remedy,
    )


def call(fd: int, request: int, argument: Any = 0, *, subject: str) -> int:
    """One ioctl. `argument` is an int or a ctypes structure, which the kernel may write. Raises KvmError."""
    try:
        return int(fcntl.ioctl(fd, request, argument))
    except OSError as error:
        raise explain(request, error.errno or 0, subject) from error


def call_with_address(fd: int, request: int, address: int, *, subject: str) -> None:
    """An ioctl whose argument is a number `fcntl.ioctl` refuses, since it takes a C int. Raises KvmError."""
    if _LIBC.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), ctypes.c_ulong(address)) < 0:
        raise explain(request, ctypes.get_errno(), subject)
