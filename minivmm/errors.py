"""The error tree of vtk. Every error says what happened, to what, the likely cause, and what to do.

VtkError
├── HostError              the host cannot do it (has .remedy)
│   ├── KvmMissing         no /dev/kvm: the module, or the whole capability, is absent
│   ├── KvmDenied          /dev/kvm is there and this user may not open it
│   └── KvmError           a KVM ioctl failed: says which, on what, errno and cause
├── ImageError             a kernel, disk or note we cannot use (has .path, .offset)
├── ConfigError            a machine that cannot be built as asked
└── GuestError             the guest broke a rule; never escapes a run
    ├── GuestMemoryError   an address that is not the guest's
    └── DriverError        a virtio driver broke the protocol: the device needs a reset

How a machine *ends* is not an error: see `minivmm.outcome`.
"""

from __future__ import annotations

from pathlib import Path


class VtkError(Exception):
    """What happened (`message`), why (`cause`), and the command or step that mends it (`remedy`)."""

    def __init__(self, message: str, *, cause: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message
        if self.cause:
            text += f"\n  cause: {self.cause}"
        if self.remedy:
            text += f"\n  try:   {self.remedy}"
        return text


class HostError(VtkError):
    """The host cannot do what was asked."""


class KvmMissing(HostError):
    """There is no /dev/kvm, or it is not KVM."""


class KvmDenied(HostError):
    """/dev/kvm exists and this user may not open it."""


class KvmError(HostError):
    """A KVM ioctl failed. `ioctl` is its name in linux/kvm.h, `errno` what the kernel answered."""

    def __init__(self, ioctl: str, errno: int, message: str, *, cause: str = "", remedy: str = "") -> None:
        super().__init__(message, cause=cause, remedy=remedy)
        self.ioctl = ioctl
        self.errno = errno


class ImageError(VtkError):
    """A file that should be a kernel or a disk is not one. `offset` is where in the file, in bytes."""

    def __init__(
        self, path: str | Path, message: str, *, offset: int | None = None, cause: str = "", remedy: str = ""
    ) -> None:
        where = f"{path}" if offset is None else f"{path} at offset {offset:#x}"
        super().__init__(f"{where}: {message}", cause=cause, remedy=remedy)
        self.path = Path(path)
        self.offset = offset


class ConfigError(VtkError):
    """The machine cannot be built as asked: sizes, counts or options that do not fit together."""


class GuestError(VtkError):
    """The guest broke a rule. Raised while serving it, answered inside the run, never seen by a user as such."""


class GuestMemoryError(GuestError):
    """The guest named `length` bytes at guest-physical `address` that are not all its memory."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"guest-physical {address:#x} + {length:#x} bytes is outside guest memory")
        self.address = address
        self.length = length


class DriverError(GuestError):
    """A virtio driver broke the protocol (virtio 1.2, 2.1.2: the device sets DEVICE_NEEDS_RESET)."""
