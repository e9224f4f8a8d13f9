"""Saying that the guests are being built: a checkout compiles them on first use, which takes some seconds."""

from __future__ import annotations

import click


def announce_build() -> None:
    """Says so on standard error when the next use of a guest will compile."""
    from guest_os.catalog import is_built

    if not is_built():
        click.echo("vtk: building the guests: some seconds, once for each state of their sources ...", err=True)


def announce_linux_programs() -> None:
    """The same for the programs of guest_os/linux, whose C library is compiled with the first of them."""
    from guest_os.hosted import PROGRAMS, is_linux_program_built

    if not all(map(is_linux_program_built, PROGRAMS)):
        click.echo("vtk: building the programs for Linux guests: a minute the very first time ...", err=True)
