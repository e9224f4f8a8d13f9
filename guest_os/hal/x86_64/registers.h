/* What trap_common (traps.S) leaves on the stack. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct registers {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax; /* pushed by trap_common */
    uint64_t vector, error;                                                           /* by the stub */
    uint64_t rip, cs, rflags, rsp, ss;                                                /* by the processor */
};

/* True when the trap happened in hal_copy_from_user(), which is then made to fail (user.S). */
bool user_copy_failed(struct registers *registers);
