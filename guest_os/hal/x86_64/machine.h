/* Names of the bare machine shared by the C and the assembly of this layer. */
#pragma once
#include "x86.h"

/* The kernel's window is on physical 0 .. 1 GiB; physical 3 .. 4 GiB (device registers) is at -1 GiB. */
#define KERNEL_REACH 0x40000000
#define DEVICE_BASE 0xffffffffc0000000
#define DEVICE_PHYSICAL 0xc0000000

/* Addresses the linker script fixes, so that descriptors (whose bytes are scattered pieces of an address) can be
 * written by the assembler and need no instruction at boot. */
#define TABLES 0xffffffff80101000
#define GDT_ADDRESS TABLES
#define TSS_ADDRESS (TABLES + 0x80)
#define TRAP_STUBS 0xffffffff80108000
#define TRAP_STUB_SIZE 16

/* Selectors: Linux's, which a KVM that runs guests at ring 3 of the host needs (asm/segment.h). */
#define KERNEL32_CS 0x08
#define KERNEL_CS 0x10
#define KERNEL_DS 0x18
#define USER32_CS 0x23
#define USER_DS 0x2b
#define USER_CS 0x33
#define TSS_SELECTOR 0x38

/* Control registers and MSRs (SDM 2.5, vol. 4 table 2-2) */
#define CR0_PE 0x1
#define CR0_MP 0x2
#define CR0_ET 0x10
#define CR0_NE 0x20
#define CR0_WP 0x10000
#define CR0_PG 0x80000000
#define CR0_BOOT (CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG)
#define CR4_PAE 0x20
#define MSR_EFER 0xc0000080
#define EFER_SCE 0x1
#define EFER_LME 0x100
#define EFER_NXE 0x800
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084

/* Vectors of interrupts; an IOAPIC pin n is delivered at VECTOR_IRQ + n. */
#define VECTOR_IRQ 0x20
#define IRQ_LINES 24
#define VECTOR_SELF 0xf0
#define VECTOR_SPURIOUS 0xff

/* How the machine was entered: the first argument of kernel_start(). */
#define BOOT_PVH 0
#define BOOT_LINUX64 1

/* enum trap_cause (hal.h), for the assembly; user.c checks that they agree. */
#define CAUSE_DIVIDE 0
#define CAUSE_PAGE 3

/* Where the other processors start: a page below 1 MiB that the loaders do not use. */
#define TRAMPOLINE 0x8000

/* Where every address space maps the page `syscall` lands on (user.S). */
#define GATE_ADDRESS 0x7ffff000
