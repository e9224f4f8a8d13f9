"""From an image to memory and initial registers.

elf.py        ELF64 and ELF32: segments into guest memory, notes, sections
bzimage.py    the ELF kernel inside a bzImage (lz4.py: one of its packings)
flat.py       what the two below have in common
linux64.py    the Linux 64-bit boot protocol (direct entry in long mode)
pvh.py        the PVH boot protocol (32-bit protected mode, hvm_start_info)
loader.py     which of them an image wants
xen_image.py  what a kernel for a Xen domain says of itself; minivmm/xen/builder.py loads it
"""
