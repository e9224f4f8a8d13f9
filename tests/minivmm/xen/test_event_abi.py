"""The numbers, sizes and offsets of event_abi.py and grant_abi.py are those of Xen's public headers."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minivmm.layout import Layout
from minivmm.xen import event_abi, grant_abi

HEADERS = Path("/usr/include/xen")  # Debian's libxen-dev
LAYOUTS: dict[str, Layout[Any]] = {
    "evtchn_alloc_unbound": event_abi.ALLOC_UNBOUND,
    "evtchn_bind_interdomain": event_abi.BIND_INTERDOMAIN,
    "evtchn_bind_virq": event_abi.BIND_VIRQ,
    "evtchn_bind_pirq": event_abi.BIND_PIRQ,
    "evtchn_bind_ipi": event_abi.BIND_IPI,
    "evtchn_close": event_abi.PORT,
    "evtchn_send": event_abi.PORT,
    "evtchn_unmask": event_abi.PORT,
    "evtchn_status": event_abi.STATUS,
    "evtchn_bind_vcpu": event_abi.BIND_VCPU,
    "evtchn_reset": event_abi.RESET,
    "grant_entry_v1": grant_abi.GRANT_ENTRY,
    "gnttab_map_grant_ref": grant_abi.MAP_GRANT_REF,
    "gnttab_unmap_grant_ref": grant_abi.UNMAP_GRANT_REF,
    "gnttab_setup_table": grant_abi.SETUP_TABLE,
    "gnttab_transfer": grant_abi.TRANSFER,
    "gnttab_copy": grant_abi.COPY,
    "gnttab_query_size": grant_abi.QUERY_SIZE,
    "gnttab_set_version": grant_abi.SET_VERSION,
    "gnttab_get_version": grant_abi.GET_VERSION,
}
# Where the header's name of a field is not ours: unions and nested structures.
OTHER_NAMES = {
    "evtchn_status": {"remote": "u.interdomain.dom", "remote_port": "u.interdomain.port"},
    "gnttab_copy": {
        "source": "source.u.ref",
        "source_domid": "source.domid",
        "source_offset": "source.offset",
        "dest": "dest.u.gmfn",
        "dest_domid": "dest.domid",
        "dest_offset": "dest.offset",
    },
}
ERRNOS = ("EPERM", "ENOENT", "ESRCH", "EEXIST", "EINVAL", "ENOSPC", "ENOSYS")


def constants() -> dict[str, int]:
    """Everything that is a number, by the header's name of it."""
    numbers: dict[str, int] = {
        "EVTCHN_2L_NR_CHANNELS": event_abi.EVTCHN_2L_NR_CHANNELS,
        "NR_VIRQS": event_abi.NR_VIRQS,
        "_GTF_reading": grant_abi.READING_BIT,
        "_GTF_writing": grant_abi.WRITING_BIT,
        "_GTF_transfer_completed": grant_abi.TRANSFER_COMPLETED_BIT,
        "GNTTAB_NR_RESERVED_ENTRIES": grant_abi.NR_RESERVED_ENTRIES,
        "GNTTAB_RESERVED_CONSOLE": grant_abi.RESERVED_CONSOLE,
        "GNTTAB_RESERVED_XENSTORE": grant_abi.RESERVED_XENSTORE,
    }
    numbers |= {f"VIRQ_{virq.name}": virq for virq in event_abi.Virq}
    numbers |= {f"EVTCHNOP_{op.name.lower()}": op for op in event_abi.EventOp}
    numbers |= {f"EVTCHNSTAT_{state.name.lower()}": state for state in event_abi.PortState}
    numbers |= {f"GNTTABOP_{op.name.lower()}": op for op in grant_abi.GrantOp}
    numbers |= {f"GNTST_{status.name.lower()}": status for status in grant_abi.GrantStatus}
    for prefix, flags in (("GNTMAP", grant_abi.GntMap), ("GNTCOPY", grant_abi.GntCopy), ("GTF", grant_abi.Gtf)):
        for name, value in vars(flags).items():
            if name.isupper():
                numbers[f"{prefix}_{name.lower()}"] = value
    numbers |= {f"XEN_{name}": getattr(errno, name) for name in ERRNOS}
    return numbers


def structures() -> dict[str, int]:
    """Every structure's size, and every field's offset: found by packing a record in which only that field is set."""
    numbers = {}
    for name, layout in LAYOUTS.items():
        numbers[f"sizeof(struct {name})"] = layout.size
        for index, field in enumerate(layout.record._fields):
            record = layout.record(*(int(other == index) for other in range(len(layout.record._fields))))
            theirs = OTHER_NAMES.get(name, {}).get(field, field)
            numbers[f"offsetof(struct {name}, {theirs})"] = layout.pack(record).index(1)
    return numbers


@pytest.mark.skipif(not HEADERS.is_dir(), reason="Xen's public headers are not installed (libxen-dev)")
def test_numbers_sizes_and_offsets_are_those_of_xens_headers(tmp_path: Path) -> None:
    claims = "".join(
        f'_Static_assert({name} == {int(value)}, "{name} is not {int(value)}");\n'
        for name, value in (constants() | structures()).items()
    )
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "xen").symlink_to(HEADERS)  # not all of /usr/include: the C library's is zig's own
    headers = "".join(f"#include <{name}.h>\n" for name in ("stdint", "stddef", "xen/xen", "xen/errno"))
    headers += "#include <xen/event_channel.h>\n#include <xen/grant_table.h>\n"
    source = tmp_path / "header.c"
    source.write_text(f"#define __XEN_INTERFACE_VERSION__ 0x00040300\n{headers}{claims}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-c"]
    command += ["-isystem", str(tmp_path / "include"), "-o", str(tmp_path / "header.o"), str(source)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stderr
