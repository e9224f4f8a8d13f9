"""guest_os: a tiny kernel, its drivers and its workloads, and the build that turns them into guests.

    from guest_os import image

    path = image("hello")        # an ELF file for minivmm, QEMU's microvm and any other PVH or Linux-64 loader
    path = image("hello", "xen") # the same guest as a paravirtual domain of Xen

`guest_os.build.build()` compiles explicitly. The names below load what they need when first used:
`import guest_os` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guest_os.build import BuildError
    from guest_os.catalog import Guest, guests, image, native
    from guest_os.disk import disk_pattern, write_disk

__all__ = ["BuildError", "Guest", "disk_pattern", "guests", "image", "native", "write_disk"]

_HOMES = {
    "BuildError": "guest_os.build",
    "Guest": "guest_os.catalog",
    "disk_pattern": "guest_os.disk",
    "guests": "guest_os.catalog",
    "image": "guest_os.catalog",
    "native": "guest_os.catalog",
    "write_disk": "guest_os.disk",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'guest_os' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
