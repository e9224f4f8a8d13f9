/* Where the kernel starts the process: rsp points to argc, argv..., NULL. */
    .section .text, "ax"
    .globl _start
_start:
    xor  %ebp, %ebp                     # frame chains end here
    mov  %rsp, %rdi                     # native_main's argument: where argc is
    and  $-16, %rsp                     # the ABI's alignment at a call
    call native_main                    # does not return
    ud2

/* Where a signal handler returns to (SA_RESTORER): rsp points to the frame the kernel made. */
    .globl linux_restorer
linux_restorer:
    mov  $15, %eax                      # rt_sigreturn
    syscall                             # continues what the signal interrupted

    .section .note.GNU-stack, "", @progbits
