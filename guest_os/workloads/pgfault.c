/* Page faults: pages that are not there are read, and the program continued at the place it named for that; the
 * address the kernel saw is part of the checksum. In a Linux process: SIGSEGV, whose handler moves the instruction
 * pointer. */
#include "processor.h"
#include "workload.h"

#define FAULTS 16
#define ABSENT 0x1000000000 /* 64 GiB: nothing is mapped there in any place */
#define STRIDE 0x1000

void pgfault_recovery(void); /* a label, not a function */

__attribute__((noinline)) static uint64_t read_absent(uint64_t address)
{
    uint64_t seen = 0, cause = 0;
    READ_ABSENT(pgfault_recovery, address, seen, cause);
    return seen << 8 | cause;
}

static const char *prepare(void)
{
    place_recover_at(pgfault_recovery);
    return NULL;
}

static uint64_t batch(void)
{
    uint64_t checksum = 0;
    for (unsigned i = 0; i < FAULTS; i++)
        checksum = fold(checksum, read_absent(ABSENT + i * STRIDE));
    return checksum;
}

const struct workload workload_pgfault = {
    .name = "pgfault", .nanobenchmark = "pgfault", .operations = FAULTS, .prepare = prepare, .batch = batch};
