/* Names of the machine shared by the C and the assembly of this layer: QEMU's `virt` board (QEMU docs/system/riscv/virt,
 * hw/riscv/virt), entered in machine mode as with `-bios none`. Privileged = The RISC-V Instruction Set Manual, volume II,
 * version 20211203 (1.12). */
#pragma once

/* RAM begins at 2 GiB; the kernel's window shows its first GiB at -2 GiB, and physical 0 .. 1 GiB (devices) at -1 GiB. */
#define RAM_PHYSICAL 0x80000000
#define WINDOW_OFFSET 0xffffffff00000000 /* kernel address - physical address, of RAM */
#define KERNEL_REACH 0xc0000000
#define DEVICE_BASE 0xffffffffc0000000
#define DEVICE_REACH 0x40000000

#define TEST_FINISHER 0x00100000 /* a word written ends the machine */
#define FINISHER_PASS 0x5555
#define FINISHER_FAIL 0x3333 /* with the exit code in the upper half */
#define FINISHER_RESET 0x7777
#define CLINT_MTIMECMP 0x02004000 /* of hart 0 */
#define PLIC 0x0c000000
#define UART 0x10000000
#define UART_LINE 10

/* Control and status registers' fields (Privileged, 3.1.6, 3.1.9, 4.1.1, 4.1.3, 4.1.11) */
#define MSTATUS_MPP_S 0x800
#define SSTATUS_SIE 0x2
#define SSTATUS_SPIE 0x20
#define SSTATUS_SPP 0x100
#define SSTATUS_SUM 0x40000
#define IP_SSIP 0x2   /* supervisor software interrupt */
#define IP_STIP 0x20  /* supervisor timer interrupt */
#define IP_MTIP 0x80  /* machine timer interrupt */
#define IP_SEIP 0x200 /* supervisor external interrupt */
#define SATP_SV39 0x8000000000000000
#define PMP_TOR_RWX 0xf

/* Causes (Privileged, tables 3.6 and 4.2) */
#define CAUSE_INSTRUCTION_ACCESS 1
#define CAUSE_ILLEGAL_INSTRUCTION 2
#define CAUSE_BREAKPOINT 3
#define CAUSE_LOAD_ACCESS 5
#define CAUSE_STORE_ACCESS 7
#define CAUSE_ECALL_FROM_U 8
#define CAUSE_ECALL_FROM_S 9
#define CAUSE_INSTRUCTION_PAGE_FAULT 12
#define CAUSE_LOAD_PAGE_FAULT 13
#define CAUSE_STORE_PAGE_FAULT 15
/* All that a supervisor may be given, save its own ecall. */
#define DELEGATED_EXCEPTIONS 0xb1ff
#define CAUSE_SOFTWARE_INTERRUPT 1
#define CAUSE_TIMER_INTERRUPT 5
#define CAUSE_EXTERNAL_INTERRUPT 9

/* RISC-V Supervisor Binary Interface 1.0: extension TIME, its one function, and the error for any other */
#define SBI_EXT_TIME 0x54494d45
#define SBI_SET_TIMER 0
#define SBI_ERR_NOT_SUPPORTED (-2)

#define STACK_SIZE 16384
