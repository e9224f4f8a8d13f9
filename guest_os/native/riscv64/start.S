/* Where the kernel starts the process: sp points to argc, argv..., NULL. */
    .section .text, "ax"
    .globl _start
_start:
    mv   a0, sp                         # native_main's argument: where argc is
    andi sp, sp, -16                    # the ABI's alignment at a call
    call native_main                    # does not return
    unimp

    .section .note.GNU-stack, "", @progbits
