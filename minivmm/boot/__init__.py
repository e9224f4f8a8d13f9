"""From an image to memory and initial registers.

elf.py      ELF64 and ELF32: segments into guest memory, notes
linux64.py  the Linux 64-bit boot protocol (direct entry in long mode)
pvh.py      the PVH boot protocol (32-bit protected mode, hvm_start_info)
loader.py   which of them an image wants
"""
