/* Page-table entries changed many at a time, where the machine has a way for many; each is proven by reading through
 * it. */
#include "workload.h"

#define ROUNDS 2

static uint64_t batch(void)
{
    uint64_t checksum = 0;
    for (unsigned i = 0; i < ROUNDS; i++)
        checksum += place_windows(i % 2) * (i + 1);
    return fold(0, checksum);
}

const struct workload workload_ptebatch = {.name = "ptebatch", .operations = ROUNDS * PLACE_WINDOWS,
                                           .prepare = place_windows_prepare, .batch = batch};
