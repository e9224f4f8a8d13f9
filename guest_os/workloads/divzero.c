/* Division by zero: an exception taken, and the program continued at the place it named for that. In a Linux process:
 * SIGFPE, whose handler moves the instruction pointer. */
#include "workload.h"

#define FAULTS 16

void divzero_recovery(void); /* a label, not a function */

__attribute__((noinline)) static uint64_t divide_by_zero(void)
{
    uint64_t address = 1, cause = 0;
    __asm__ volatile("xor %%ecx, %%ecx\n\t"
                     "div %%rcx\n\t"              /* #DE: continues at the label with rax and rdx set */
                     "ud2\n\t"                    /* a division by zero that does not trap */
                     ".globl divzero_recovery\n"
                     "divzero_recovery:"
                     : "+a"(address), "+d"(cause)
                     :
                     : "rcx", "cc", "memory");
    return address << 8 | cause;
}

static const char *prepare(void)
{
    place_recover_at(divzero_recovery);
    return NULL;
}

static uint64_t batch(void)
{
    uint64_t checksum = 0;
    for (unsigned i = 0; i < FAULTS; i++)
        checksum = fold(checksum, divide_by_zero());
    return checksum;
}

const struct workload workload_divzero = {
    .name = "divzero", .nanobenchmark = "divzero", .operations = FAULTS, .prepare = prepare, .batch = batch};
