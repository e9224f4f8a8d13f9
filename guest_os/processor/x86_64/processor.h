/* What the shared sources need of the processor in its own words: x86-64. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* One instruction: on some KVMs each one of a kernel costs a microsecond. */
static inline void processor_copy(void *to, const void *from, size_t size)
{
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

static inline void processor_fill(void *to, int byte, size_t size)
{
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
}

/* Our own kernel's system calls (system_calls.h): number in rax, arguments in rdi, rsi, rdx, result in rax. */
static inline uint64_t processor_system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    __asm__ volatile("syscall"
                     : "+a"(number), "+D"(a), "+S"(b), "+d"(c)
                     :
                     : "rcx", "r8", "r9", "r10", "r11", "memory");
    return number;
}

/* A recovery (place_recover_at()) continues with the address in rax and the cause in rdx. */

#define DIVIDE_BY_ZERO(label, address, cause)                                                \
    __asm__ volatile("xor %%ecx, %%ecx\n\t"                                                  \
                     "div %%rcx\n\t" /* #DE: continues at the label with rax and rdx set */  \
                     "ud2\n\t"       /* a division by zero that does not trap */             \
                     ".globl " #label "\n" #label ":"                                        \
                     : "+a"(address), "+d"(cause)                                            \
                     :                                                                       \
                     : "rcx", "cc", "memory")

#define READ_ABSENT(label, from, address, cause)                                                  \
    __asm__ volatile("mov (%2), %%rcx\n\t" /* #PF: continues at the label with rax and rdx set */ \
                     "ud2\n\t"             /* the page was there */                               \
                     ".globl " #label "\n" #label ":"                                             \
                     : "+a"(address), "+d"(cause)                                                 \
                     : "r"(from)                                                                  \
                     : "rcx", "cc", "memory")
