/* x86-64 names shared by the C and the assembly of both layers. SDM = Intel 64 and IA-32 Architectures Software
 * Developer's Manual, volume 3A unless stated otherwise. */
#pragma once

/* The kernel's window on RAM: physical 0 and up at -2 GiB. */
#define KERNEL_BASE 0xffffffff80000000

/* Page-table entries (SDM 4.5) */
#define PTE_P 0x1
#define PTE_W 0x2
#define PTE_U 0x4
#define PTE_PWT 0x8
#define PTE_PCD 0x10
#define PTE_A 0x20
#define PTE_D 0x40
#define PTE_PS 0x80
#define PTE_NX 0x8000000000000000

/* RFLAGS (SDM vol. 1, 3.4.3) */
#define FLAGS_FIXED 0x2
#define FLAGS_TF 0x100
#define FLAGS_IF 0x200
#define FLAGS_DF 0x400
#define FLAGS_NT 0x4000
#define FLAGS_AC 0x40000

/* Vectors (SDM 6.15) */
#define VECTOR_DE 0
#define VECTOR_NMI 2
#define VECTOR_BP 3
#define VECTOR_OF 4
#define VECTOR_UD 6
#define VECTOR_DF 8
#define VECTOR_GP 13
#define VECTOR_PF 14
#define VECTOR_MC 18
#define VECTOR_SYSCALL 0x80

/* Whether the processor pushes an error code for a vector (SDM 6.13). */
#define HAS_ERROR_CODE(vector) \
    (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)

#define STACK_SIZE 16384
