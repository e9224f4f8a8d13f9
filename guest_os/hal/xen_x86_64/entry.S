/* The ways into the kernel and out of it.
 *
 * Xen enters with a frame on the kernel's stack: rcx r11 [error] rip cs rflags rsp ss, from rsp up; cs has RPL 0 where
 * kernel code was interrupted, though it ran at ring 3, and rflags has IF where events were let in. The way back is the
 * iret hypercall, whose entry of the hypercall page is jumped to, with flags rip cs rflags rsp ss on the stack.
 */
#include "frame.h"
#include "system_calls.h"
#include "x86.h"
#include "xen.h"

/* struct vcpu_info of CPU 0, at the start of shared_info: the only CPU that takes events */
#define UPCALL_PENDING 0
#define UPCALL_MASK 1

#define IRET hypercall_page + 32 * __HYPERVISOR_iret

/* One stub a vector, 16 bytes each: start.c registers them. rcx and r11 go back to their registers, so that what is left
 * is what a processor would have pushed, and traps look as they do on the bare machine. */
    .section .text.traps, "ax"
    .macro trap_stub vector
    .balign 16
    pop  %rcx
    pop  %r11                           # the stack: [error] rip cs rflags rsp ss
    .if !HAS_ERROR_CODE(\vector)
    push $0                             # no error code: a zero where it would be
    .endif
    push $\vector - 256                 # what is read of it is the low byte
    jmp  trap_common
    .endm
    .balign 16
    .globl trap_stubs, trap_stub_system_call
trap_stubs:
    .set vector, 0
    .rept 32
    trap_stub vector
    .set vector, vector + 1
    .endr
trap_stub_system_call:
    trap_stub VECTOR_SYSCALL

trap_common:                            # the stack: vector error rip cs rflags rsp ss
    push_registers                      # struct registers (registers.h) is complete, rsp points to it
    cld                                 # the C ABI wants DF clear; iret brings the old one back
    mov  %rsp, %rdi                     # first argument: the registers
    call trap_handle                    # Xen aligned the frame; rsp is 16-aligned here
    pop_registers                       # as trap_handle left them
    add  $8, %rsp                       # the vector goes
    movq $0, (%rsp)                     # flags in place of the error code: restore rcx and r11 too
    jmp  IRET                           # back to what was interrupted

/* `syscall` in a program. rcx and r11, which it may lose, hold its rip and rflags, and so does the frame. The return
 * address would make the stack 16-aligned, so it is 8 bytes off: only vector instructions would mind, and the kernel
 * has none. */
    .globl system_call_entry
system_call_entry:                      # the stack: rcx r11 rip cs rflags rsp ss
    add  $16, %rsp                      # rip is on top
    cld                                 # the C ABI wants DF clear; iret brings the program's back
    cmp  $SYSTEM_CALLS, %rax
    jae  1f
    call *system_calls(,%rax,8)         # rdi, rsi, rdx are the arguments already; rax the result
    push $VGCF_in_syscall               # rcx and r11 need not be restored
    jmp  IRET
1:  mov  $-ENOSYS, %rax
    push $VGCF_in_syscall
    jmp  IRET

/* Events, with further ones masked. Back to a program it is the iret hypercall; back to the kernel, which waits with
 * events let in (hal_wait), nothing needs Xen: unmask, and return as rip and rflags say. An event that comes after the
 * unmasking interrupts here like anywhere; one that came before it was not delivered, so it is looked for. */
    .globl event_entry
event_entry:                            # the stack: rcx r11 rip cs rflags rsp ss
    pop  %rcx
    pop  %r11                           # the stack: rip cs rflags rsp ss
    push_changed                        # the nine registers a C function may change
    cld
handle_events:
    call events_pending                 # 5 words and 9 pushed, from a 16-byte boundary: aligned
    testb $3, CHANGED_SIZE + 8(%rsp)    # cs: from a program?
    jnz  1f
    movb $0, shared_info + UPCALL_MASK  # let events in
    cmpb $0, shared_info + UPCALL_PENDING
    jne  2f                             # one came before that
    mov  CHANGED_SIZE + 24(%rsp), %rax  # rsp of the interrupted code; what is below it is free
    mov  CHANGED_SIZE(%rsp), %rcx
    mov  %rcx, -8(%rax)                 # its rip there; this may overwrite ss of the frame
    mov  CHANGED_SIZE + 16(%rsp), %rcx
    mov  %rcx, -16(%rax)                # its rflags below; this may overwrite ss or rsp of the frame
    sub  $16, %rax
    mov  %rax, CHANGED_SIZE + 8(%rsp)   # where they are, in place of cs
    pop_changed                         # the stack: rip, where, ...
    mov  8(%rsp), %rsp                  # the stack: rflags rip, and then the interrupted code's own
    popfq
    ret
1:  pop_changed
    push $0                             # flags: restore rcx and r11 too
    jmp  IRET                           # to the program; events are let in as its rflags.IF says
2:  movb $1, shared_info + UPCALL_MASK
    jmp  handle_events

/* Xen could not return to a program as asked: a selector was bad. Nothing here makes one. */
    .globl failsafe_entry
failsafe_entry:
    call hal_crash                      # does not return

/* user_enter(rdi = pc, rsi = stack, rdx = argument): to user level. The kernel's place is kept in user_return until
 * hal_user_leave() comes back to it; traps meanwhile use the trap stack. */
    .globl user_enter
user_enter:
    push_kept                           # what the caller wants kept
    mov  %rsp, user_return              # where hal_user_leave() shall continue
    push $FLAT_USER_SS
    push %rsi                           # the program's stack
    push $FLAGS_FIXED | FLAGS_IF        # events are let in in user mode
    push $FLAT_USER_CS                  # RPL 3: user mode
    push %rdi                           # rip
    push $VGCF_in_syscall               # rcx and r11 are of no interest
    mov  %rdx, %rdi                     # the program's first argument
    jmp  IRET

/* hal_triple_fault(): an exception whose frame cannot be pushed. */
    .globl hal_triple_fault
hal_triple_fault:
    xor  %esp, %esp                     # no stack below address 0
    ud2

/* Where another CPU starts (cpus.c): rdi = its number, rsp = a stack of its own. */
    .globl cpu_start
cpu_start:
    lock incl cpus_running              # here: counted
1:  mov  %rdi, %rbx                     # kept over the call
    mov  %rdi, %rsi                     # second argument: which CPU
    mov  $VCPUOP_down, %edi             # first argument: nothing to do, sleep for good
    xor  %edx, %edx
    call hypercall_page + 32 * __HYPERVISOR_vcpu_op
    mov  %rbx, %rdi
    jmp  1b
