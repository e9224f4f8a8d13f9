"""Dynamic translation: RISC-V to x86-64."""
