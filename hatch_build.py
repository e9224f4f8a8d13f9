"""What `pip wheel` and friends run: a wheel ships the built guests, so that an installed vtk needs no compiler."""

from __future__ import annotations

import sys
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GuestImages(BuildHookInterface[Any]):
    """Builds every guest and puts it into the wheel as guest_os/images; an editable install builds on first use."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises guest_os.build.BuildError when a guest does not build: a wheel without them would be of no use."""
        if self.target_name != "wheel" or version == "editable":
            return
        sys.path.insert(0, self.root)
        try:
            from guest_os.build import build
            from guest_os.hosted import PROGRAMS, linux_program

            for path in build().values():
                build_data["force_include"][str(path)] = f"guest_os/images/{path.name}"
            for name in PROGRAMS:
                build_data["force_include"][str(linux_program(name))] = f"guest_os/images/linux/{name}"
        finally:
            sys.path.remove(self.root)
