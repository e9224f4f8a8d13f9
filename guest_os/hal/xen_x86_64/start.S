/* The entry and everything Xen must know beforehand.
 *
 * A domain starts in 64-bit mode on the page tables its builder made, the image mapped where it is linked; rsi = the
 * virtual address of start_info, rsp = a stack of one page, events masked (xen.h, "Start-of-day memory layout"). The
 * kernel runs at ring 3 like its programs; Xen keeps them apart by their page tables.
 */
#include "x86.h"
#include "xen.h"

/* ELF notes (elfnote.h): the name "Xen", a type, a number or a text. */
    .section .note.xen, "a", @note
    .macro note_number type, value
    .balign 4
    .long 4, 8, \type                   # n_namesz, n_descsz, n_type
    .asciz "Xen"
    .quad \value
    .endm
    .macro note_text type, text
    .balign 4
    .long 4, 2f - 1f, \type             # n_namesz, n_descsz, n_type
    .asciz "Xen"
1:  .asciz "\text"
2:  .balign 4
    .endm
    note_number XEN_ELFNOTE_ENTRY, start_domain
    note_number XEN_ELFNOTE_HYPERCALL_PAGE, hypercall_page
    note_number XEN_ELFNOTE_VIRT_BASE, KERNEL_BASE
    note_number XEN_ELFNOTE_PADDR_OFFSET, 0
    note_text XEN_ELFNOTE_XEN_VERSION, "xen-3.0"
    note_text XEN_ELFNOTE_GUEST_OS, "vtk"
    note_text XEN_ELFNOTE_GUEST_VERSION, "1"
    note_text XEN_ELFNOTE_LOADER, "generic"
    note_text XEN_ELFNOTE_PAE_MODE, "yes"
    note_text XEN_ELFNOTE_FEATURES, "pae_pgdir_above_4gb|dom0" # Xen starts as its first only a kernel that can be dom0

/* Xen writes the calls here before the domain runs. */
    .section .text.hypercalls, "ax"
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096, 0x90

    .section .text.start, "ax"
    .globl start_domain
start_domain:
    cld                                 # as the C ABI wants it
    mov  $kernel_stack_top, %rsp        # a larger stack; grows down from its 16-byte-aligned top
    xor  %ebp, %ebp                     # frame chains end here
    mov  %rsi, %rdi                     # the argument: start_info
    call domain_start                   # start.c; does not return
    ud2                                 # so that a return would end the domain

/* A page whose own frame is hidden once Xen's shared_info is mapped there (start.c). */
    .section .bss.pages, "aw", @nobits
    .balign 4096
    .globl shared_info
shared_info:
    .skip 4096

    .section .bss.stacks, "aw", @nobits
    .balign 16
    .skip STACK_SIZE
kernel_stack_top:                       # the kernel's own work
    .skip STACK_SIZE
    .globl trap_stack_top
trap_stack_top:                         # traps, events and system calls from user mode
