"""What a domain finds in the store when it starts, as Xen's tools leave it for a PV domain (docs/misc/xenstore-paths).

    /local/domain/3/name, domid, vm       who it is; vm is /vm/UUID, where its name and uuid are again
                    memory/target         KiB: the balloon aims at it; static-max: what it started with
                    console/, store/      its rings: ring-ref is a machine frame, port an event channel of its own
                    cpu/0/availability    online or offline
                    control/shutdown      a request of the tools; the domain writes the empty string back
                    device/               its front ends: none yet
                    data, drivers, ...    for what runs in it

The domain may read all of it (n0,r3). What it may write it owns (n3).
"""

from __future__ import annotations

import contextlib
import uuid

from minivmm.xen.store import Store, get_domain_path
from minivmm.xen.store_tree import StoreError, permissions

CONSOLE_LIMIT = 1 << 20  # bytes of output that console daemons keep
OWN = (
    *("control/shutdown", "control/sysrq", "control/feature-poweroff", "control/feature-reboot"),
    *("control/feature-suspend", "device/suspend/event-channel"),
    *("data", "drivers", "feature", "attr", "error"),
)


def introduce(
    store: Store,
    domid: int,
    *,
    name: str,
    memory_kib: int,
    vcpus: int,
    console_port: int,
    console_mfn: int,
    store_port: int,
    store_mfn: int,
    identity: uuid.UUID | None = None,
) -> None:
    """A domain is there: its nodes, then @introduceDomain. What an earlier domain of that number left is removed."""
    home, vm = get_domain_path(domid), f"/vm/{identity or uuid.uuid4()}"
    nodes = {
        "name": name,
        "domid": domid,
        "vm": vm,
        "memory/static-max": memory_kib,
        "memory/target": memory_kib,
        "console/type": "xenconsoled",
        "console/limit": CONSOLE_LIMIT,
        "console/port": console_port,
        "console/ring-ref": console_mfn,
        "store/port": store_port,
        "store/ring-ref": store_mfn,
        "control/platform-feature-multiprocessor-suspend": 1,
        "control/platform-feature-xs_reset_watches": 1,
        **{f"cpu/{vcpu}/availability": "online" for vcpu in range(vcpus)},
    }
    tools = store.tools
    tx = tools.transaction_start()
    tools.mkdir("/local/domain", tx)
    tools.rm(home, tx)
    for path, described in ((home, nodes), (vm, {"name": name, "uuid": vm.removeprefix("/vm/")})):
        tools.mkdir(path, tx)
        tools.set_perms(path, permissions("n0", f"r{domid}"), tx)
        for node, value in described.items():
            tools.write(f"{path}/{node}", str(value).encode(), tx)
    for node in OWN:
        tools.mkdir(f"{home}/{node}", tx)
        tools.set_perms(f"{home}/{node}", permissions(f"n{domid}"), tx)
    tools.transaction_end(tx, commit=True)
    store.introduce(domid)


def remove(store: Store, domid: int) -> None:
    """The domain, which is not dom0, is no more: nothing in the store is of it or for it, then @releaseDomain."""
    tools, home = store.tools, get_domain_path(domid)
    with contextlib.suppress(StoreError):  # dom0 may have removed any of it
        vm = tools.read(f"{home}/vm").decode("latin-1")
        if vm.startswith("/vm/"):
            tools.rm(vm)
    with contextlib.suppress(StoreError):
        tools.rm(home)
    store.release(domid)
