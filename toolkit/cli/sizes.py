"""Sizes as options take them: `64M`, `1G`, `512K`; a bare number is MiB, as for QEMU's -m."""

from __future__ import annotations

import re

import click

UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Size(click.ParamType[int]):
    """A number of bytes."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Raises BadParameter."""
        if isinstance(value, int):
            return value
        size = re.fullmatch(r"(\d{1,15})([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE | re.ASCII)
        if size is None:
            self.fail(f"{value!r} is not a size: write 64M, 1G or 512K", param, ctx)
        return int(size[1]) * UNITS[size[2].upper() or "M"]
