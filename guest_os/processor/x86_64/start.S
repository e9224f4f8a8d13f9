/* Where a program begins: rdi = its arguments (include/program.h), rsp = the end of its data page. */
#include "system_calls.h"

    .section .text.start, "ax"
    .globl _start
_start:
    mov  %rdi, %rbx                     # kept over the clearing; nothing else is in a register yet
    mov  $bss_start, %rdi               # the variables, which the kernel left as they were
    mov  $bss_end, %rcx
    sub  %rdi, %rcx                     # their size in bytes
    xor  %eax, %eax
    rep  stosb                          # cleared here and not by the kernel: at ring 3 this always runs natively
    mov  %rbx, %rdi                     # program_main's argument
    and  $-16, %rsp                     # the ABI's alignment at a call
    call program_main
    mov  %rax, %rdi                     # its result is the exit code
    mov  $SYS_EXIT, %eax
    syscall                             # does not return
    ud2
