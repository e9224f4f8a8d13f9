"""A RISC-V machine (RV64GC, M/S/U, Sv39) made of software alone: one table of instructions, and what runs from it.

docs/emulator.md says how the parts fit together.
"""
