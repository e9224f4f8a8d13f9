/* The user programs' ELF file, in the kernel's image; page-aligned, because it is mapped and not copied. */
    .section .rodata.user_image, "a"
    .balign 4096
    .globl user_image
user_image:
    .incbin "user.elf"
    .balign 4096
