"""/dev/kvm itself: opening it, what this host's KVM can do, and making a VM."""

from __future__ import annotations

import errno
import grp
import os
from pathlib import Path

from minivmm.errors import KvmDenied, KvmMissing
from minivmm.kvm import abi
from minivmm.kvm.ioctl import call
from minivmm.kvm.vm import Vm

DEVICE = "/dev/kvm"

_supported_cpuid: list[bytes] = []


class Kvm:
    """The KVM device. Raises KvmMissing or KvmDenied, which say how to mend it."""

    def __init__(self, device: str = DEVICE) -> None:
        try:
            self.fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise _cannot_open(device, error) from error
        try:
            version = call(self.fd, abi.KVM_GET_API_VERSION, subject=device)
            if version != abi.KVM_API_VERSION:
                raise KvmMissing(
                    f"{device} speaks API version {version}",
                    cause=f"every Linux since 2.6.22 speaks version {abi.KVM_API_VERSION}: this is not KVM",
                )
            self.run_size = call(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE, subject=device)
        except BaseException:
            os.close(self.fd)
            raise

    def check_extension(self, capability: abi.Cap) -> int:
        """0 when the capability is absent, else 1 or what it counts (4.4)."""
        return call(self.fd, abi.KVM_CHECK_EXTENSION, int(capability), subject=DEVICE)

    def supported_cpuid(self) -> abi.kvm_cpuid2:
        """The CPUID leaves KVM can offer a guest here (4.46): the caller's own copy.

        Asked once a process, since the answer cannot change and costs 0.3 ms, a tenth of a machine.
        """
        if not _supported_cpuid:
            leaves = abi.kvm_cpuid2(nent=abi.KVM_MAX_CPUID_ENTRIES)
            call(self.fd, abi.KVM_GET_SUPPORTED_CPUID, leaves, subject=DEVICE)
            _supported_cpuid.append(bytes(leaves))
        return abi.kvm_cpuid2.from_buffer_copy(_supported_cpuid[0])

    def create_vm(self) -> Vm:
        """A new, empty VM (4.2)."""
        return Vm(call(self.fd, abi.KVM_CREATE_VM, subject=DEVICE), self.run_size)

    def close(self) -> None:
        """Closes the device; VMs made from it live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Kvm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cannot_open(device: str, error: OSError) -> KvmMissing | KvmDenied:
    if error.errno in (errno.EACCES, errno.EPERM):
        return _denied(device)
    if error.errno == errno.ENOENT:
        return KvmMissing(
            f"there is no {device}",
            cause=_why_missing(),
            remedy="sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        )
    return KvmMissing(
        f"{device} cannot be opened: {error.strerror}",
        cause="KVM is not usable on this host",
        remedy="vtk doctor",
    )


def _denied(device: str) -> KvmDenied:
    """Says what stands in the way: the user's groups, or the device node itself."""
    try:
        status = os.stat(device)
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        group, mode = "?", 0
    else:
        mode = status.st_mode & 0o777
    join = "sudo usermod -aG kvm $USER, then log in again (in a container: --device /dev/kvm)"
    if group == "kvm" and mode & 0o060 == 0o060:
        return KvmDenied(f"{device} may not be opened by this user", cause="this user is not in group kvm", remedy=join)
    return KvmDenied(
        f"{device} may not be opened by this user",
        cause=f"it belongs to group {group} with mode {mode:o}, which lets only its owner in",
        remedy=f"sudo chgrp kvm {device} && sudo chmod 660 {device}; {join}",
    )


def _why_missing() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        flags = ""
    if " vmx" in flags or " svm" in flags:
        return "the CPU can (vmx or svm) and the kvm module is not loaded"
    return "this CPU shows neither vmx nor svm: virtualization is off in the firmware, or this is a VM without nesting"
