/* From real mode to the kernel half, for the processors started by cpus.c. Copied to TRAMPOLINE: addresses inside it
 * are written relative to that. */
#include "machine.h"

    .section .rodata.trampoline, "a"
    .globl trampoline, trampoline_end
    .code16
trampoline:                             # CS = TRAMPOLINE / 16, IP = 0
    cli                                 # there is no IDT yet
    xor  %eax, %eax
    mov  %ax, %ds                       # data addresses are physical
    lgdtl TRAMPOLINE + gdt_pointer_16 - trampoline
    mov  $CR4_PAE, %eax
    mov  %eax, %cr4                     # what long mode needs
    mov  $boot_pml4 - KERNEL_BASE, %eax
    mov  %eax, %cr3                     # the boot tables, which map low memory at its own address
    mov  $MSR_EFER, %ecx
    mov  $EFER_LME, %eax
    xor  %edx, %edx
    wrmsr                               # long mode enabled, not active
    mov  $CR0_BOOT, %eax
    mov  %eax, %cr0                     # protected and paged at once: long mode is active
    ljmpl $KERNEL_CS, $TRAMPOLINE + trampoline_64 - trampoline
    .code64
trampoline_64:
    mov  $cpu_start, %rax               # sign-extended: in the kernel half
    jmp  *%rax
    .balign 8
gdt_pointer_16:
    .word 0x47                          # the nine entries of boot.S
    .long GDT_ADDRESS - KERNEL_BASE
trampoline_end:

    .section .text.cpus, "ax"
cpu_start:
    lock incl cpus_running              # here: counted
1:  cli                                 # nothing to do: sleep, for good
    hlt
    jmp  1b
