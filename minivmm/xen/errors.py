"""What a hypercall may fail with: one class, which carries the number the guest gets."""

from __future__ import annotations

from minivmm.errors import GuestError


class HypercallError(GuestError):
    """A domain asked for what it may not have. `errno` is Xen's number (xen/errno.h), positive; the guest reads its
    negative. `reason` is for the reader of a trace."""

    def __init__(self, errno: int, reason: str) -> None:
        super().__init__(reason)
        self.errno = errno
