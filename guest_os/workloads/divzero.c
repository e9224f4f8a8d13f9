/* Division by zero: an exception taken, and the program continued at the place it named for that. In a Linux process:
 * SIGFPE, whose handler moves the instruction pointer. On RISC-V, where it does not trap: a breakpoint
 * (processor/riscv64/processor.h). */
#include "processor.h"
#include "workload.h"

#define FAULTS 16

void divzero_recovery(void); /* a label, not a function */

__attribute__((noinline)) static uint64_t divide_by_zero(void)
{
    uint64_t address = 1, cause = 0;
    DIVIDE_BY_ZERO(divzero_recovery, address, cause);
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
