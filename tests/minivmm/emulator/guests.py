"""Guests for the RISC-V machine, made in the test that runs them: lines of assembly, or C through ziglang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from minivmm.emulator.assembly import program
from minivmm.emulator.physical import RAM_BASE

POWER_OFF = """
lui t0,0x100
lui t1,0x5
addi t1,t1,0x555
sw t1,0(t0)
"""


def exit_with(code: str) -> str:
    """Code that ends the machine with the value of register `code` as its exit code. Changes t0 and t1."""
    return f"""
    slli t1,{code},16
    lui t0,0x3
    addi t0,t0,0x333
    or t1,t1,t0
    lui t0,0x100
    sw t1,0(t0)
    """


def write_raw(directory: Path, source: str, name: str = "guest.bin") -> Path:
    """A raw image of the assembled lines."""
    path = directory / name
    path.write_bytes(program(source, RAM_BASE))
    return path


START = """
    .section .text.start
    .globl _start
_start:
    la sp, stack_top
    call main
    slli a0, a0, 16
    li t0, 0x3333
    or a0, a0, t0
    li t0, 0x100000
    sw a0, 0(t0)
1:  j 1b
    .bss
    .balign 16
    .space 16384
stack_top:
"""
SCRIPT = """
ENTRY(_start)
SECTIONS {
  . = 0x80000000;
  .text : { *(.text.start) *(.text*) }
  .data : { *(.rodata*) *(.data*) *(.sdata*) }
  .bss : { *(.bss*) *(.sbss*) *(COMMON) }
  /DISCARD/ : { *(.eh_frame*) *(.comment) *(.note*) }
}
"""


def compile_c(directory: Path, source: str, *, march: str = "rv64imac") -> Path:
    """A freestanding ELF: `int main(void)` returns the exit code. Raises CalledProcessError."""
    (directory / "start.S").write_text(START)
    (directory / "guest.lds").write_text(SCRIPT)
    (directory / "guest.c").write_text(source)
    features = "+m+a" + ("+c" if "c" in march.removeprefix("rv64") else "-c") + "-d-f"
    output = directory / "guest.elf"
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "ziglang",
                "cc",
                "-target",
                "riscv64-freestanding-none",
                f"-mcpu=generic_rv64{features}",
            ),
            *("-mabi=lp64", "-mcmodel=medany", "-O2", "-ffreestanding", "-fno-sanitize=undefined", "-nostdlib"),
            *("-static", "-Wl,-T,guest.lds", "-o", output.name, "start.S", "guest.c"),
        ],
        cwd=directory,
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    return output
