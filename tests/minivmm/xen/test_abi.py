"""Every number, size and offset of the Xen ABI is the public headers'."""

from __future__ import annotations

import errno
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from minivmm.boot import xen_image
from minivmm.layout import Layout
from minivmm.xen import abi, hypercall_abi, memory_abi, platform_abi

HEADERS = Path("/usr/include/xen")
INCLUDED = [
    *("xen.h", "elfnote.h", "errno.h", "features.h", "version.h", "sched.h", "vcpu.h", "callback.h", "memory.h"),
    *("physdev.h", "nmi.h"),
    *("io/console.h", "io/xs_wire.h"),
]
MODULES: list[ModuleType] = [abi, hypercall_abi, memory_abi, platform_abi]

# What the headers put before the names of each of our groups.
PREFIXES = {
    abi.Domid: "DOMID_",
    abi.FlatRing3: "FLAT_RING3_",
    abi.StartInfoFlag: "SIF_",
    abi.XsWire: "XS_",
    abi.Feature: "XENFEAT_",
    abi.Runstate: "RUNSTATE_",
    abi.ContextFlag: "VGCF_",
    hypercall_abi.Hypercall: "__HYPERVISOR_",
    hypercall_abi.Mmu: "MMU_",
    hypercall_abi.Mmuext: "MMUEXT_",
    hypercall_abi.UpdateVaFlag: "UVMF_",
    hypercall_abi.ConsoleIo: "CONSOLEIO_",
    hypercall_abi.VmAssistCommand: "VMASST_CMD_",
    hypercall_abi.VmAssistType: "VMASST_TYPE_",
    hypercall_abi.SegmentBase: "SEGBASE_",
    hypercall_abi.CallbackOp: "CALLBACKOP_",
    hypercall_abi.CallbackType: "CALLBACKTYPE_",
    hypercall_abi.SchedOp: "SCHEDOP_",
    hypercall_abi.Shutdown: "SHUTDOWN_",
    hypercall_abi.VcpuOp: "VCPUOP_",
    hypercall_abi.XenVersion: "XENVER_",
    memory_abi.MemoryOp: "XENMEM_",
    platform_abi.PhysdevOp: "PHYSDEVOP_",
    platform_abi.NmiOp: "XENNMI_",
    xen_image.XenElfNote: "XEN_ELFNOTE_",
}
# Groups of offsets: the structure, and its member where it is not the name in lower case.
OFFSETS = {
    abi.VcpuInfo: "vcpu_info",
    abi.SharedInfo: "shared_info",
    abi.VcpuGuestContext: "vcpu_guest_context",
    abi.XenconsInterface: "xencons_interface",
    abi.XenstoreDomainInterface: "xenstore_domain_interface",
}
RENAMED = {
    "VMASST_TYPE_FOUR_GB_SEGMENTS": "VMASST_TYPE_4gb_segments",
    "VMASST_TYPE_FOUR_GB_SEGMENTS_NOTIFY": "VMASST_TYPE_4gb_segments_notify",
    # The headers have these in capitals too, for older interface versions only.
    **{f"PHYSDEVOP_{name.upper()}": f"PHYSDEVOP_{name}" for name in ("irq_status_query", "set_iopl", "set_iobitmap")},
    "RUNSTATE_UPDATE": "XEN_RUNSTATE_UPDATE",
    "PVCLOCK_TSC_STABLE_BIT": "XEN_PVCLOCK_TSC_STABLE_BIT",
    "PVCLOCK_GUEST_STOPPED": "XEN_PVCLOCK_GUEST_STOPPED",
    "struct start_info.console_mfn": "console.domU.mfn",
    "struct start_info.console_evtchn": "console.domU.evtchn",
    "struct mmuext_op.arg1": "arg1.mfn",
    "struct mmuext_op.arg2": "arg2.src_mfn",
    **{f"struct multicall_entry.arg{index}": f"args[{index}]" for index in range(6)},
    **{
        f"struct vcpu_runstate_info.{state}": f"time[RUNSTATE_{state}]"
        for state in ("running", "runnable", "blocked", "offline")
    },
    **{
        f"struct xen_memory_exchange.{side}_{field}": f"{side}.{field}"
        for side in ("in", "out")
        for field in ("extent_start", "nr_extents", "extent_order", "mem_flags", "domid")
    },
}


def macros() -> dict[str, str]:
    """The headers' names by their names in capitals, which is how ours are written."""
    text = "".join(path.read_text(encoding="utf-8") for path in HEADERS.rglob("*.h"))
    names = re.findall(r"^\s*#\s*define\s+(\w+)", text, re.MULTILINE) + re.findall(r"^\s+(XS_\w+)", text, re.MULTILINE)
    return {name.upper(): name for name in names}


def constants(group: object) -> Iterator[tuple[str, int]]:
    for name, value in vars(group).items():
        if name.isupper() and isinstance(value, int):
            yield name, value


def fields(layout: Layout[Any]) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every field, from the format that the layout packs with."""
    names = iter(layout.record._fields)
    format: str = layout._struct.format
    offset = 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", format):
        if code in "xs":
            size = struct.calcsize("<" + count + code)
            if code == "s":
                yield next(names), offset, size
            offset += size
            continue
        for _ in range(int(count or 1)):
            size = struct.calcsize("<" + code)
            yield next(names), offset, size
            offset += size
    assert next(names, None) is None


def claims() -> Iterator[tuple[str, int]]:
    named = macros()
    for group, prefix in PREFIXES.items():
        for name, value in constants(group):
            yield RENAMED.get(prefix + name, named.get((prefix + name).upper(), prefix + name)), value
    for group, structure in OFFSETS.items():
        for name, value in constants(group):
            if name == "SIZE":
                yield f"sizeof(struct {structure})", value
            else:
                yield f"offsetof(struct {structure}, {name.lower()})", value
    for module in MODULES:
        for name, value in constants(module):
            yield RENAMED.get(name, named.get(name, name)), value
        for value in vars(module).values():
            if not isinstance(value, Layout):
                continue
            structure = "struct " + re.sub(r"(?<!^)(?=[A-Z])", "_", value.record.__name__).lower()
            yield f"sizeof({structure})", value.size
            for field, offset, size in fields(value):
                member = RENAMED.get(f"{structure}.{field}", field)
                yield f"offsetof({structure}, {member})", offset
                yield f"sizeof((({structure} *)0)->{member})", size


def compiles(directory: Path, expected: list[tuple[str, int]]) -> str:
    """What the compiler says to the claims against the headers; nothing when they hold."""
    (directory / "xen").symlink_to(HEADERS)
    asserts = "".join(
        f'_Static_assert(({name}) == {value:#x}ull, "{name.replace(chr(34), "")} is not {value:#x}");\n'
        for name, value in expected
    )
    includes = "".join(f"#include <xen/{name}>\n" for name in INCLUDED)
    source = directory / "abi.c"
    source.write_text(
        f"#define __XEN_INTERFACE_VERSION__ 0x00040e00\n#include <stdint.h>\n#include <stddef.h>\n{includes}{asserts}"
    )
    compiler = [*(sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-I", str(directory))]
    options = ["-Wno-sign-compare", "-c", "-o", str(directory / "abi.o")]
    done = subprocess.run([*compiler, *options, str(source)], capture_output=True, text=True, timeout=120, check=False)
    return done.stderr if done.returncode else ""


needs_headers = pytest.mark.skipif(
    not (HEADERS / "xen.h").is_file(),
    reason="Xen's public headers are not installed (try: sudo apt install libxen-dev)",
)


@needs_headers
def test_numbers_sizes_and_offsets_are_those_of_the_headers(tmp_path: Path) -> None:
    expected = list(claims())
    assert len(expected) > 400
    assert compiles(tmp_path, expected) == ""


@needs_headers
def test_a_wrong_number_does_not_compile(tmp_path: Path) -> None:
    assert "is not" in compiles(tmp_path, [("__HYPERVISOR_mmu_update", 2)])


@needs_headers
def test_every_hypercall_and_note_of_the_headers_is_named() -> None:
    named = macros()
    for group, skipped in (
        (hypercall_abi.Hypercall, r"ARCH_\d|MCA|DOM0_OP|VIRT_\w+"),
        (hypercall_abi.Mmuext, "$^"),
        (hypercall_abi.VcpuOp, "$^"),
        (hypercall_abi.SchedOp, "$^"),
    ):
        prefix = PREFIXES[group].upper()
        theirs = {name.removeprefix(prefix) for name in named if name.startswith(prefix)}
        ours = {name for name, _ in constants(group)}
        assert {name for name in theirs - ours if not re.fullmatch(skipped, name)} == set()


@needs_headers
def test_xens_errors_are_numbered_as_pythons() -> None:
    """Which is why the code takes them from `errno`."""
    theirs = re.findall(
        r"^XEN_ERRNO\((\w+),\s*(\d+)\)", (HEADERS / "errno.h").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(theirs) > 40
    assert {name: getattr(errno, name, int(number)) for name, number in theirs} == {
        name: int(number) for name, number in theirs
    }


@needs_headers
def test_features_are_named_as_in_the_header() -> None:
    text = (HEADERS / "features.h").read_text(encoding="utf-8")
    numbers = {name: int(number) for name, number in re.findall(r"XENFEAT_(\w+)\s+(\d+)", text)}
    assert [numbers[name] for name in xen_image.FEATURE_NAMES] == list(range(len(xen_image.FEATURE_NAMES)))


@needs_headers
def test_the_emulation_prefix_is_the_headers() -> None:
    text = (HEADERS / "arch-x86/xen.h").read_text(encoding="utf-8")
    (prefix,) = re.findall(r'XEN_EMULATE_PREFIX "\.byte ([^;]+)', text)
    assert bytes(int(byte, 16) for byte in prefix.split(",")) == abi.EMULATE_PREFIX
