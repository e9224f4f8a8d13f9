"""Linux programs for riscv64 without a C library, compiled in the test that runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Build = Callable[[str], Path]

START = r"""
static long call(long n, long a, long b, long c, long d, long e, long f)
{
    register long a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c, a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e, a5 __asm__("a5") = f, a7 __asm__("a7") = n;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5), "r"(a7) : "memory");
    return a0;
}
#define CALL(n, a, b, c, d) call(n, (long)(a), (long)(b), (long)(c), (long)(d), -1, 0)
enum { OPENAT = 56, CLOSE = 57, READ = 63, WRITE = 64, READLINKAT = 78, FSTAT = 80, EXIT = 93, BRK = 214, MUNMAP = 215,
       MMAP = 222, MPROTECT = 226, UNLINKAT = 35, MKDIRAT = 34 };
#define HERE -100
static unsigned long length(const char *s) { unsigned long n = 0; while (s[n]) n++; return n; }
static void say(const char *s) { CALL(WRITE, 1, s, length(s), 0); }
long start(long *stack);
__asm__(".globl _start\n_start: mv a0, sp\n andi sp, sp, -16\n call start\n li a7, 93\n ecall");
"""


def compile_program(directory: Path, body: str) -> Path:
    """A static program of START and `body`, which defines `start`."""
    source = directory / f"program{len(list(directory.iterdir()))}.c"
    source.write_text(START + body)
    output = source.with_suffix("")
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-freestanding-none"),
            *("-mcpu=generic_rv64+m+a+c", "-nostdlib", "-static", "-O1", "-fno-sanitize=all", "-fno-builtin"),
            *("-Wno-unused-function", str(source), "-o", str(output)),
        ],
        check=True,
        capture_output=True,
    )
    return output
