"""Who is there, and a word to the console: xen_version (version.h), console_io (xen.h)."""

from __future__ import annotations

from errno import E2BIG, EINVAL, ENODATA, ENOSYS, EPERM

from minivmm.xen import abi
from minivmm.xen.domain import CONSOLE_LIMIT
from minivmm.xen.errors import HypercallError
from minivmm.xen.hypercall_abi import (
    XEN_COMPILE_INFO,
    XEN_FEATURE_INFO,
    ConsoleIo,
    XenCompileInfo,
    XenVersion,
)
from minivmm.xen.vcpu import VirtualCpu

VERSION = 4 << 16 | 17  # the version whose public headers are followed
EXTRAVERSION = b".vtk"
CAPABILITIES = b"xen-3.0-x86_64 "  # and nothing else: no 32-bit domains, no HVM
FEATURES = (
    1 << abi.Feature.PAE_PGDIR_ABOVE_4GB
    | 1 << abi.Feature.MMU_PT_UPDATE_PRESERVE_AD
    | 1 << abi.Feature.GNTTAB_MAP_AVAIL_BITS
)
SIZES = {XenVersion.EXTRAVERSION: 16, XenVersion.CAPABILITIES: 1024, XenVersion.CHANGESET: 64}
MAX_CONSOLE_WRITE = 4096  # bytes at once, as Xen cuts them
BREATHES_AT = 64 * MAX_CONSOLE_WRITE


def xen_version(vcpu: VirtualCpu, cmd: int, argument: int) -> int:
    """version.h: every subcommand."""
    pages = vcpu.pages
    match cmd & 0xFFFF_FFFF:
        case XenVersion.VERSION:
            return VERSION
        case XenVersion.EXTRAVERSION:
            pages.write(argument, EXTRAVERSION.ljust(SIZES[XenVersion.EXTRAVERSION], b"\0"))
        case XenVersion.COMPILE_INFO:
            pages.write(argument, XEN_COMPILE_INFO.pack(XenCompileInfo(b"none", b"", b"", b"")))
        case XenVersion.CAPABILITIES:
            pages.write(argument, CAPABILITIES.ljust(SIZES[XenVersion.CAPABILITIES], b"\0"))
        case XenVersion.CHANGESET:
            pages.write(argument, b"unavailable".ljust(SIZES[XenVersion.CHANGESET], b"\0"))
        case XenVersion.PLATFORM_PARAMETERS:
            pages.write(argument, abi.HYPERVISOR_VIRT_START.to_bytes(8, "little"))
        case XenVersion.GET_FEATURES:
            info = pages.read_record(argument, XEN_FEATURE_INFO)
            pages.write(argument, XEN_FEATURE_INFO.pack(info._replace(submap=0 if info.submap_idx else FEATURES)))
        case XenVersion.PAGESIZE:
            if argument:
                raise HypercallError(EINVAL, "XENVER_pagesize takes no argument")
            return 4096
        case XenVersion.GUEST_HANDLE:
            pages.write(argument, vcpu.domain.handle)
        case XenVersion.COMMANDLINE:
            raise HypercallError(EPERM, "the hypervisor's command line is not the domain's to read")
        case XenVersion.BUILD_ID:
            raise HypercallError(ENODATA, "the hypervisor has no build id")
        case _:
            raise HypercallError(ENOSYS, f"xen_version {cmd} is not there")
    return 0


def console_io(vcpu: VirtualCpu, cmd: int, count: int, buffer: int) -> int:
    """xen.h: the emergency console. What is typed goes to the console ring instead."""
    match cmd & 0xFFFF_FFFF:
        case ConsoleIo.WRITE:
            count &= 0xFFFF_FFFF
            if count > CONSOLE_LIMIT:
                raise HypercallError(E2BIG, f"{count} bytes are more than is kept of a console's output")
            written = 0
            while written < count:
                piece = min(count - written, MAX_CONSOLE_WRITE)
                vcpu.domain.write_output(vcpu.pages.read(buffer + written, piece))
                written += piece
                if written < count and not written % BREATHES_AT:
                    vcpu.core.let_others_in()
            return 0
        case ConsoleIo.READ:
            return 0
    raise HypercallError(ENOSYS, f"console_io {cmd} is not there")
