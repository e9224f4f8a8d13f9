/* Trap entry, and the way to user mode and back.
 *
 * sscratch is 0 while the kernel runs, and the top of the trap stack while a program does: swapping it with sp tells
 * where a trap comes from and gives it a stack in one instruction. */
#include "machine.h"
#include "system_calls.h"

#define PC (32 * 8) /* struct registers (registers.h) */
#define STATUS (33 * 8)
#define CAUSE (34 * 8)
#define VALUE (35 * 8)
#define FRAME (36 * 8)

    .macro each_register instruction
    .irp n, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    \instruction x\n, \n * 8(sp)
    .endr
    .endm

    .section .text.traps, "ax"
    .balign 4
    .globl trap_entry
trap_entry:
    csrrw sp, sscratch, sp              # from a program: sp = trap stack, sscratch = its sp
    beqz sp, from_kernel
    sd   t0, -8(sp)                     # nothing else can come: interrupts are off
    csrr t0, scause
    addi t0, t0, -CAUSE_ECALL_FROM_U
    bnez t0, from_program

/* The system call, which keeps what a function call keeps: ra, sp, s0 .. s11, gp, tp. sstatus has SPP = user and SPIE = 1
 * as the trap left them; a trap in the kernel meanwhile puts them back so (sret: SPP = user, SPIE = 1; Privileged 4.1.1). */
    addi sp, sp, -32
    sd   ra, 0(sp)
    csrr t0, sepc
    addi t0, t0, 4                      # go on after the ecall
    sd   t0, 8(sp)
    csrrw t0, sscratch, zero            # the program's sp; the kernel runs now
    sd   t0, 16(sp)
    li   t0, SYSTEM_CALLS
    bgeu a7, t0, 2f
    slli a7, a7, 3
    lla  t0, system_calls
    add  t0, t0, a7
    ld   t0, 0(t0)
    jalr t0                             # a0, a1, a2 are the arguments already; a0 the result
1:  ld   t0, 8(sp)
    csrw sepc, t0
    ld   ra, 0(sp)
    addi t0, sp, 32
    csrw sscratch, t0                   # the trap stack, for the next
    ld   sp, 16(sp)
    sret
2:  li   a0, -ENOSYS
    j    1b

from_program:
    ld   t0, -8(sp)
    addi sp, sp, -FRAME
    each_register sd
    csrrw t0, sscratch, zero            # the program's sp; the kernel runs now
    j    1f
from_kernel:
    csrrw sp, sscratch, zero            # sp is the kernel's again, sscratch 0
    addi sp, sp, -FRAME
    each_register sd
    addi t0, sp, FRAME                  # the sp that was
1:  sd   t0, 2 * 8(sp)
    sd   zero, 0(sp)
    csrr t0, sepc
    sd   t0, PC(sp)
    csrr t0, sstatus
    sd   t0, STATUS(sp)
    csrr t0, scause
    sd   t0, CAUSE(sp)
    csrr t0, stval
    sd   t0, VALUE(sp)
    mv   a0, sp                         # trap_handle's argument; FRAME is a multiple of 16
    call trap_handle
    ld   t0, PC(sp)
    csrw sepc, t0
    ld   t0, STATUS(sp)
    csrw sstatus, t0                    # SPP says whom to go back to
    andi t0, t0, SSTATUS_SPP
    bnez t0, 2f
    addi t0, sp, FRAME
    csrw sscratch, t0                   # to a program: the trap stack, for the next
2:  each_register ld
    ld   sp, 2 * 8(sp)
    sret

/* user_enter(a0 = pc, a1 = stack, a2 = argument): to user mode. The kernel's place is kept in user_return until
 * hal_user_leave() comes back to it. */
    .globl user_enter, hal_user_leave
user_enter:
    addi sp, sp, -112
    sd   ra, 0(sp)
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
    sd   s\n, 8 + \n * 8(sp)
    .endr
    lla  t0, user_return
    sd   sp, 0(t0)
    csrw sepc, a0
    li   t0, SSTATUS_SPP
    csrc sstatus, t0                    # sret goes to user mode,
    li   t0, SSTATUS_SPIE
    csrs sstatus, t0                    # with interrupts on
    lla  t0, trap_stack_top
    csrw sscratch, t0
    mv   sp, a1
    mv   a0, a2
    sret

/* hal_user_leave(a0 = result): back from user_enter(), whatever the trap stack held. */
hal_user_leave:
    lla  t0, user_return
    ld   sp, 0(t0)
    ld   ra, 0(sp)
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11
    ld   s\n, 8 + \n * 8(sp)
    .endr
    addi sp, sp, 112
    ret                                 # in the caller of user_enter(), interrupts off, sscratch 0

/* hal_copy_from_user(a0 = to, a1 = from, a2 = size): true, or false where the user half does not hold it all. A page
 * fault at the load continues at user_copy_end with a0 = 0 (traps.c). */
    .globl hal_copy_from_user, user_copy_load, user_copy_end
hal_copy_from_user:
    mv   t0, a0
    li   a0, 0                          # false, until all is copied
    add  t1, a1, a2                     # the end
    bltu t1, a1, user_copy_end          # it wraps
    srli t2, t1, 38                     # the user half ends at 2^38
    bnez t2, user_copy_end
1:  beq  a1, t1, 2f
user_copy_load:
    lbu  t3, 0(a1)
    sb   t3, 0(t0)
    addi a1, a1, 1
    addi t0, t0, 1
    j    1b
2:  li   a0, 1                          # true
user_copy_end:
    ret

    .section .bss.user, "aw", @nobits
    .balign 8
user_return:
    .skip 8
