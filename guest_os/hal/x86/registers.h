/* What both layers' trap entries leave on the stack, and what they do with it. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct registers {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax; /* by push_registers (frame.h) */
    uint64_t vector, error;                                                           /* by the vector's stub */
    uint64_t rip, cs, rflags, rsp, ss;                                                /* by the processor, or by Xen */
};

/* From the trap entry; a return continues what the registers say (traps.c). */
void trap_handle(struct registers *registers);

/* The layer's: where the page fault went that is being handled, and the root of the page tables in use. */
uint64_t trap_fault_address(void);
uint64_t trap_page_root(void);
