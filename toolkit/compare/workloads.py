"""The workloads for people: what one operation of each is, and what the literature calls it.

The work itself is in `guest_os/workloads/`. The nanobenchmarks are those of Adams and Agesen, "A Comparison of Software
and Hardware Techniques for x86 Virtualization" (ASPLOS 2006): single operations on which techniques differ most.
"""

from __future__ import annotations

from typing import NamedTuple


class Workload(NamedTuple):
    """One row of the table."""

    name: str
    operation: str
    """What one operation is."""
    nanobenchmark: str = ""
    """Its name in Adams and Agesen, where it is one of theirs."""


WORKLOADS = (
    Workload("cpu", "a round of integer work: prime sieve, SHA-256, matrix product"),
    Workload("memory", "256 steps of a pointer chase through 8 MiB, and 32 KiB copied"),
    Workload("call", "a function called and returned from", "callret"),
    Workload("syscall", "a system call that does nothing", "syscall"),
    Workload("divzero", "a division by zero, taken and handled", "divzero"),
    Workload("pgfault", "an access to a page that is not there, taken and handled", "pgfault"),
    Workload("ptemod", "a page-table entry changed and flushed", "ptemod"),
    Workload("ptebatch", "a page-table entry changed and flushed, 64 at a time"),
    Workload("cr", "a privileged register written: CR8, the task priority", "cr8wr"),
    Workload("portin", "a byte read from an I/O port", "in"),
    Workload("mmio", "a device register read through memory"),
    Workload("ctxswitch", "a switch from one address space to another"),
    Workload("irq", "an interrupt sent to oneself, waited for and handled"),
    Workload("blk-seq", "a sequential disk read of 1 MiB"),
    Workload("blk-rand", "a disk read of 4 KiB at a random place"),
    Workload("console", "a line of 64 bytes written to the console"),
)

BY_NAME = {workload.name: workload for workload in WORKLOADS}


def other_name(name: str) -> str:
    """The name in Adams and Agesen of the workload `name`; empty when it has none, or the same."""
    known = BY_NAME.get(name)
    return known.nanobenchmark if known and known.nanobenchmark != name else ""


def operation(name: str) -> str:
    """What one operation of the workload `name` is; empty when it is not one of ours."""
    known = BY_NAME.get(name)
    return known.operation if known else ""
