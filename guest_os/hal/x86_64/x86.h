/* x86-64 names shared by the C and the assembly of this layer. SDM = Intel 64 and IA-32 Architectures Software
 * Developer's Manual, volume 3A unless stated otherwise. */
#pragma once

/* The kernel's window on RAM: physical 0 .. 1 GiB at -2 GiB; physical 3 .. 4 GiB (device registers) at -1 GiB. */
#define KERNEL_BASE 0xffffffff80000000
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

/* Page-table entries (SDM 4.5) */
#define PTE_P 0x1
#define PTE_W 0x2
#define PTE_U 0x4
#define PTE_PWT 0x8
#define PTE_PCD 0x10
#define PTE_PS 0x80
#define PTE_NX 0x8000000000000000

/* RFLAGS (SDM vol. 1, 3.4.3) */
#define FLAGS_FIXED 0x2
#define FLAGS_TF 0x100
#define FLAGS_IF 0x200
#define FLAGS_DF 0x400
#define FLAGS_NT 0x4000
#define FLAGS_AC 0x40000

/* Vectors (SDM 6.15); an IOAPIC pin n is delivered at VECTOR_IRQ + n. */
#define VECTOR_DE 0
#define VECTOR_NMI 2
#define VECTOR_BP 3
#define VECTOR_UD 6
#define VECTOR_DF 8
#define VECTOR_GP 13
#define VECTOR_PF 14
#define VECTOR_MC 18
#define VECTOR_IRQ 0x20
#define IRQ_LINES 24
#define VECTOR_SYSCALL 0x80
#define VECTOR_SELF 0xf0
#define VECTOR_SPURIOUS 0xff

/* How the machine was entered: the first argument of kernel_start(). */
#define BOOT_PVH 0
#define BOOT_LINUX64 1

/* enum trap_cause (hal.h), for the assembly; traps.c checks that they agree. */
#define CAUSE_DIVIDE 0
#define CAUSE_PAGE 3

#define STACK_SIZE 16384

/* Where the other processors start: a page below 1 MiB that the loaders do not use. */
#define TRAMPOLINE 0x8000

/* Where every address space maps the page `syscall` lands on (user.S). */
#define GATE_ADDRESS 0x7ffff000
