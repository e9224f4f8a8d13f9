"""The techniques compared. One table; a new technique is one class, or one entry of a class that is here.

Every technique runs the same workload sources; machines of one processor the same guest file with the same disk file, a
domain the same kernel on Xen's interface instead of the hardware's.

    technique.py    what a technique is
    process.py      the workloads as a program of an operating system: a process, or a container
    wasm.py         … of a language-level virtual machine
    machine.py      the workloads on a kernel of ours, on machines of this processor
    emulation.py    … on machines of another processor, and its programs
"""

from __future__ import annotations

from typing import NamedTuple

from toolkit.compare.techniques.emulation import Emulated, QemuUser, QemuVirt
from toolkit.compare.techniques.machine import Hvm, Paravirt, Qemu
from toolkit.compare.techniques.process import Container, Native
from toolkit.compare.techniques.technique import REFERENCE, Bench, Obstacle, Technique
from toolkit.compare.techniques.wasm import Wasm

__all__ = [
    "BY_NAME",
    "FAMILIES",
    "REFERENCE",
    "TECHNIQUES",
    "Bench",
    "Hvm",
    "Obstacle",
    "Technique",
]


class Family(NamedTuple):
    """Techniques that are read side by side."""

    title: str
    techniques: tuple[Technique, ...]


FAMILIES = (
    Family("Programs: process and language virtual machines", (Native(), Container(), Wasm())),
    Family(
        "Machines of this processor",
        (
            Hvm("hvm", "inline", "minivmm on KVM: full virtualization with the CPU's help"),
            Paravirt(),
            Qemu("qemu-kvm", "kvm", "QEMU microvm on the same KVM"),
            Qemu("qemu-tcg", "tcg", "QEMU microvm, every instruction translated by its TCG"),
        ),
    ),
    Family(
        "Emulation: everything compiled for RISC-V",
        (
            Emulated("interpret", "minivmm's RISC-V machine, one instruction after the other interpreted in Python"),
            Emulated("translate", "the same machine, blocks of instructions translated to x86-64 and kept"),
            QemuVirt(),
            QemuUser(),
        ),
    ),
)

TECHNIQUES: tuple[Technique, ...] = tuple(technique for family in FAMILIES for technique in family.techniques)

BY_NAME = {technique.name: technique for technique in TECHNIQUES}
