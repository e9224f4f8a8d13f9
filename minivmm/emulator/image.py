"""Images for the RISC-V machine: an ELF64 file, loaded at its physical addresses, or raw bytes for the start of RAM."""

from __future__ import annotations

from pathlib import Path

from minivmm.boot.elf import EM_RISCV, MAGIC, Elf, read_image
from minivmm.emulator.physical import RAM_BASE, Ram
from minivmm.errors import ImageError
from minivmm.memory import PAGE_SIZE


def load(image: str | Path, ram: Ram, tree: bytes) -> tuple[int, int]:
    """Puts the image and, in the last pages of RAM, the device tree there. Returns the entry point, where the tree is.

    Raises ImageError for what cannot be loaded, or leaves no room.
    """
    path = Path(image)
    data = read_image(path)
    tree_at = RAM_BASE + ram.size - len(tree) & ~(PAGE_SIZE - 1)
    if data[:4] == MAGIC:
        elf = Elf(path, data, machines=(EM_RISCV,))
        if not elf.is_64:
            raise ImageError(path, "an ELF32 file: this machine is RV64", offset=4)
        entry, end = elf.header.entry, elf.load(ram, lowest=RAM_BASE)
        if not RAM_BASE <= entry < RAM_BASE + ram.size:
            raise ImageError(
                path, f"its entry point {entry:#x} is not in RAM, which starts at {RAM_BASE:#x}", offset=24
            )
    else:
        entry, end = RAM_BASE, RAM_BASE + len(data)
        if end <= tree_at:
            ram.write(RAM_BASE, data)
    if end > tree_at:
        needed = (end - RAM_BASE + len(tree) + PAGE_SIZE >> 20) + 1
        raise ImageError(
            path,
            f"does not fit: it ends at {end:#x}, and the device tree is at {tree_at:#x}",
            cause=f"the machine has {ram.size >> 20} MiB",
            remedy=f"--mem {needed}M",
        )
    ram.write(tree_at, tree)
    return entry, tree_at
