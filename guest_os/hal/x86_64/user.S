/* Into user mode, and the system call gate. */
#include "frame.h"
#include "system_calls.h"
#include "machine.h"

    .section .text.user, "ax"
/* user_enter(rdi = pc, rsi = stack, rdx = argument): to ring 3 by sysret. The kernel's place is kept in user_return
 * until hal_user_leave() comes back to it; traps meanwhile use the trap stack. */
    .globl user_enter
user_enter:
    push_kept                           # what the caller wants kept
    mov  %rsp, user_return              # where hal_user_leave() shall continue
    mov  %rdi, %rcx                     # sysret takes rip from rcx
    mov  $FLAGS_FIXED | FLAGS_IF, %r11d # and rflags from r11: interrupts on in user mode
    mov  %rdx, %rdi                     # the program's first argument
    mov  %rsi, %rsp                     # the program's stack; interrupts are off until sysret
    sysretq                             # ring 3, CS = USER_CS, SS = USER_DS

/* The gate: a page of its own that every address space maps at GATE_ADDRESS, user-executable. `syscall` lands here
 * with rcx = return address, r11 = rflags, rsp still the program's.
 *  - On hardware at ring 0: change the stack, call, sysret.
 *  - On a KVM that runs guests at ring 3 of the host: still at ring 3, where the kernel cannot be called. The gate
 *    then enters it through int3, the cheapest trap there, which knows it by its address; rcx and r11 wait on
 *    the program's own stack, below the 128 bytes the ABI lets a leaf function use.
 * r9, the sixth argument, is free: no call takes so many. */
    .section .gate, "ax"
    .balign 4096
    .globl gate, gate_system_call, gate_after_trap
gate:
gate_system_call:
    mov  %cs, %r9d                      # the selector in use, whose low bits are the ring
    test $3, %r9b
    jnz  still_user
    mov  %rsp, %r9                      # the program's stack pointer, untrusted
    mov  $trap_stack_top, %rsp          # ours; interrupts are off (SFMASK)
    push %r9                            # kept for the return
    push %rcx                           # return address
    push %r11                           # rflags
    push %r9                            # fills the stack to a multiple of 16
    cmp  $SYSTEM_CALLS, %rax
    jae  unknown
    call *system_calls(,%rax,8)         # rdi, rsi, rdx are the arguments already
back:
    pop  %r9
    pop  %r11
    pop  %rcx
    pop  %rsp                           # the program's stack; interrupts still off
    sysretq                             # rip = rcx, rflags = r11
unknown:
    mov  $-ENOSYS, %rax
    jmp  back

still_user:
    lea  -128(%rsp), %rsp               # leave the red zone alone
    push %rcx                           # return address
    push %r11                           # rflags
    int3                                # into breakpoint_entry; rax has the result after it
gate_after_trap:
    popf                                # the flags SFMASK cleared; at ring 3 this cannot touch IF or IOPL
    pop  %rcx                           # return address
    lea  128(%rsp), %rsp                # the stack is as it was
    jmp  *%rcx

/* int3: a system call when it is the gate's own (below), which is the fast way in where `syscall` does not leave
 * ring 3; each instruction here costs half a microsecond there. Five words were pushed, so the stack is 8 bytes off
 * the ABI's alignment: only vector instructions would mind, and the kernel has none. */
    .section .text.user, "ax"
    .globl breakpoint_entry
breakpoint_entry:
    cmpq $GATE_ADDRESS + gate_after_trap - gate, (%rsp) # the rip that was pushed: after the gate's int3?
    jne  1f
    cmp  $SYSTEM_CALLS, %rax
    jae  2f
    call *system_calls(,%rax,8)         # rdi, rsi, rdx are the arguments already; rax the result
    iretq                               # to gate_after_trap, ring 3
2:  mov  $-ENOSYS, %rax
    iretq
1:  push $0                             # an ordinary breakpoint
    push $VECTOR_BP
    jmp  trap_common

/* The two exceptions a program may recover from are answered here when it has said where (SYS_RECOVER): it goes on
 * there with rax = the address that faulted, rdx = the cause. That is what kernel_trap() would do, without the C: a
 * hundred instructions, each of which is interpreted on some KVMs. Everything else takes the common path. */
    .section .text.user, "ax"
    .globl divide_entry, page_fault_entry
divide_entry:                           # the stack: rip cs rflags rsp ss
    cmpw $USER_CS, 8(%rsp)              # from a program?
    jne  1f
    cmpq $0, program_recovery           # which has said where to go on?
    je   1f
    mov  program_recovery, %rax
    mov  %rax, (%rsp)                   # rip of the return
    xor  %eax, %eax                     # no address
    mov  $CAUSE_DIVIDE, %edx
    iretq                               # at the recovery address
1:  push $0                             # no error code
    push $VECTOR_DE
    jmp  trap_common

page_fault_entry:                       # the stack: error rip cs rflags rsp ss
    cmpw $USER_CS, 16(%rsp)             # from a program?
    jne  1f
    cmpq $0, program_recovery           # which has said where to go on?
    je   1f
    add  $8, %rsp                       # the error code goes
    mov  program_recovery, %rax
    mov  %rax, (%rsp)                   # rip of the return
    mov  %cr2, %rax                     # the address
    mov  $CAUSE_PAGE, %edx
    iretq                               # at the recovery address
1:  push $VECTOR_PF
    jmp  trap_common
