"""physdev.h and nmi.h: what of the platform's own hypercalls a domain without devices has a use for.

Checked against the headers by a test, as abi.py is.
"""

from __future__ import annotations

from typing import NamedTuple

from minivmm.layout import Layout


class PhysdevOp:
    """PHYSDEVOP_*."""

    EOI = 12
    IRQ_STATUS_QUERY = 5
    SET_IOPL = 6
    SET_IOBITMAP = 7


class PhysdevSetIopl(NamedTuple):
    """struct physdev_set_iopl: the vCPU's I/O privilege level, 0 to 3."""

    iopl: int


PHYSDEV_SET_IOPL = Layout("<I", PhysdevSetIopl)


class NmiOp:
    """XENNMI_*."""

    REGISTER_CALLBACK = 0
    UNREGISTER_CALLBACK = 1


class XennmiCallback(NamedTuple):
    """struct xennmi_callback."""

    handler_address: int
    pad: int


XENNMI_CALLBACK = Layout("<QQ", XennmiCallback)
