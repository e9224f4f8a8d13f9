/* What the trap entry (traps.S) leaves on the stack. */
#pragma once
#include <stdint.h>

struct registers {
    uint64_t x[32]; /* x[0] is no register: zero */
    uint64_t pc, status, cause, value; /* sepc, sstatus, scause, stval */
};

/* From the trap entry; a return continues what the registers say. */
void trap_handle(struct registers *registers);
