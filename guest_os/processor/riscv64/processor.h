/* What the shared sources need of the processor in its own words: RISC-V, RV64IMAC (The RISC-V Instruction Set Manual,
 * volume I, 20191213). */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* By words where both ends allow it: there are no string instructions. */
static inline void processor_copy(void *to, const void *from, size_t size)
{
    uint8_t *target = to;
    const uint8_t *source = from;
    if (((uintptr_t)target | (uintptr_t)source) % 8 == 0) {
        for (; size >= 8; size -= 8, target += 8, source += 8)
            *(uint64_t *)target = *(const uint64_t *)source;
    }
    for (; size > 0; size--)
        *target++ = *source++;
}

static inline void processor_fill(void *to, int byte, size_t size)
{
    volatile uint8_t *target = to; /* so that no compiler makes a call of memset of it */
    for (; size > 0; size--)
        *target++ = (uint8_t)byte;
}

/* Our own kernel's system calls (system_calls.h): number in a7, arguments in a0 .. a2, result in a0. */
static inline uint64_t processor_system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    register uint64_t a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c, a7 __asm__("a7") = number;
    __asm__ volatile("ecall"
                     : "+r"(a0), "+r"(a1), "+r"(a2), "+r"(a7)
                     :
                     : "ra", "a3", "a4", "a5", "a6", "t0", "t1", "t2", "t3", "t4", "t5", "t6", "memory");
    return a0;
}

/* A recovery (place_recover_at()) continues with the address in a0 and the cause in a1. */

/* Division by zero has a result here (volume I, 7.2: all ones) and does not trap: what a compiler adds for a language
 * in which it is an error is a test and a breakpoint, and the kernel takes a program's breakpoint for that. */
#define DIVIDE_BY_ZERO(label, address, cause)                    \
    do {                                                         \
        register uint64_t a0 __asm__("a0") = (address);          \
        register uint64_t a1 __asm__("a1") = (cause);            \
        __asm__ volatile("li t0, 0\n\t"                          \
                         "bnez t0, 1f\n\t"                       \
                         "ebreak\n"                              \
                         "1: divu t0, a0, t0\n\t"                \
                         "unimp\n\t"                             \
                         ".globl " #label "\n" #label ":"        \
                         : "+r"(a0), "+r"(a1)                    \
                         :                                       \
                         : "t0", "memory");                      \
        (address) = a0;                                          \
        (cause) = a1;                                            \
    } while (0)

#define READ_ABSENT(label, from, address, cause)                 \
    do {                                                         \
        register uint64_t a0 __asm__("a0") = (address);          \
        register uint64_t a1 __asm__("a1") = (cause);            \
        __asm__ volatile("ld t0, 0(%2)\n\t"                      \
                         "unimp\n\t"                             \
                         ".globl " #label "\n" #label ":"        \
                         : "+r"(a0), "+r"(a1)                    \
                         : "r"(from)                             \
                         : "t0", "memory");                      \
        (address) = a0;                                          \
        (cause) = a1;                                            \
    } while (0)
