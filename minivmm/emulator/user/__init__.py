"""Linux programs for riscv64 on an emulated hart: system calls answered here, no kernel below."""
