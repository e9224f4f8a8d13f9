/* User programs: where they live, and how the kernel runs one. All programs are one ELF file (programs/), mapped in
 * place from the kernel's image; the name in the arguments chooses. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define USER_TEXT 0x400000  /* text and constants, mapped from the image; read-only */
#define USER_DATA 0x800000  /* one large page: the arguments, variables; the stack grows down from its end */
#define USER_STACK 0xa00000
#define USER_HEAP 0x40000000
#define USER_HEAP_END 0x80000000

/* At USER_DATA when the program starts, and its first argument. */
struct program_arguments {
    uint64_t number;
    char name[56];
};

#ifndef PROGRAM
#include "hal.h"

struct program_end {
    bool started;      /* false: no memory for it */
    bool killed;       /* by a trap it had no recovery for: .trap */
    uint64_t code;     /* given to SYS_EXIT */
    struct trap trap;
};

/* Runs a program to its end. */
struct program_end program_run(const char *name, uint64_t number);

extern uint64_t program_recovery; /* SYS_RECOVER's address, or 0 */
_Noreturn void program_killed(const struct trap *trap);
/* More heap for the running program; 0 when there is none. */
uint64_t program_heap(uint64_t bytes);
#endif
