/* The first instructions, and the little of machine mode there is: QEMU's virt board with `-bios none` begins at the
 * start of RAM, in machine mode, without paging: a0 = the hart's number, a1 = physical address of the device tree. */
#include "machine.h"

    .section .boot, "ax"
    .globl _start
_start:
    csrw mie, zero                      # no interrupt in machine mode
    bnez a0, park                       # one hart is enough; the others sleep
    lla  t0, machine_trap               # physical addresses: machine mode knows no others
    csrw mtvec, t0
    lla  t0, machine_stack_top
    csrw mscratch, t0                   # machine_trap's stack
    li   t0, -1
    csrw pmpaddr0, t0                   # physical memory protection, entry 0: all there is
    li   t0, PMP_TOR_RWX
    csrw pmpcfg0, t0                    # is the supervisor's (Privileged 3.7: without an entry, nothing is)
    li   t0, DELEGATED_EXCEPTIONS
    csrw medeleg, t0                    # its exceptions go straight to it,
    li   t0, IP_SSIP | IP_STIP | IP_SEIP
    csrw mideleg, t0                    # and its interrupts
    li   t0, 7
    csrw mcounteren, t0                 # it may read cycle, time and instret
    lla  t0, boot_root
    srli t0, t0, 12
    li   t1, SATP_SV39
    or   t0, t0, t1
    csrw satp, t0                       # paging, from the first instruction outside machine mode
    sfence.vma
    li   t1, WINDOW_OFFSET
    lla  t0, supervisor_start
    add  t0, t0, t1                     # where the kernel sees it
    csrw mepc, t0
    li   t0, MSTATUS_MPP_S
    csrw mstatus, t0
    mret                                # supervisor mode at supervisor_start, interrupts off; a1 = device tree

park:
    wfi                                 # no interrupt is enabled
    j    park

/* Machine mode after that: a minimal SBI, so that the kernel has its timer (machine mode's alone in this version of the
 * architecture). Only the supervisor's ecall and the machine's timer come here; anything else ends the machine. */
    .balign 4
machine_trap:
    csrrw sp, mscratch, sp              # sp = our stack, mscratch = the supervisor's
    addi sp, sp, -16
    sd   t0, 0(sp)
    sd   t1, 8(sp)
    csrr t0, mcause
    bltz t0, machine_timer              # an interrupt: no other is enabled
    li   t1, CAUSE_ECALL_FROM_S
    bne  t0, t1, machine_crash
    csrr t0, mepc
    addi t0, t0, 4                      # go on after the ecall
    csrw mepc, t0
    li   t0, SBI_EXT_TIME
    bne  a7, t0, 1f
    bnez a6, 1f                         # SBI_SET_TIMER is the only function
    li   t0, CLINT_MTIMECMP
    sd   a0, 0(t0)                      # the next interrupt; the pending one goes with it
    li   t0, IP_STIP
    csrc mip, t0
    li   t0, IP_MTIP
    csrs mie, t0
    li   a0, 0                          # SBI_SUCCESS
    j    2f
1:  li   a0, SBI_ERR_NOT_SUPPORTED
2:  li   a1, 0                          # struct sbiret: error, value
    j    machine_return
machine_timer:
    li   t0, IP_MTIP
    csrc mie, t0                        # until the supervisor sets the timer again
    li   t0, IP_STIP
    csrs mip, t0                        # its timer interrupt
machine_return:
    ld   t0, 0(sp)
    ld   t1, 8(sp)
    addi sp, sp, 16
    csrrw sp, mscratch, sp              # as they were
    mret
machine_crash:
    li   t0, TEST_FINISHER
    li   t1, 0x7f << 16 | FINISHER_FAIL
    sw   t1, 0(t0)                      # ends the machine
    j    park

/* From here on in supervisor mode, at kernel addresses. */
    .section .text.boot, "ax"
supervisor_start:
    lla  sp, stack_top
    lla  t0, trap_entry
    csrw stvec, t0
    csrw sscratch, zero                 # in the kernel (traps.S)
    csrw sie, zero
    li   t0, SSTATUS_SUM
    csrs sstatus, t0                    # the kernel reads and writes programs' pages, as the other layers' does
    li   a0, 0                          # kernel_start(protocol, argument = a1)
    call kernel_start                   # does not return
    unimp

/* The kernel's half of every address space (Sv39, Privileged 4.4): two leaves of 1 GiB, accessed, dirty and global. */
    .section .data.tables, "aw"
    .balign 4096
    .globl boot_root
boot_root:
    .skip 510 * 8
    .quad RAM_PHYSICAL >> 2 | 0xef      # -2 GiB: RAM; D A G - X W R V
    .quad 0 | 0xe7                      # -1 GiB: devices; not executable

    .section .bss.stacks, "aw", @nobits
    .balign 16
    .skip 256
machine_stack_top:
    .skip STACK_SIZE
stack_top:
    .skip STACK_SIZE
    .globl trap_stack_top
trap_stack_top:
