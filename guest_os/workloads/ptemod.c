/* A page-table entry changed and its old translation flushed; each change is proven by reading through it. */
#include "workload.h"

#define CHANGES 16

static uint64_t batch(void)
{
    uint64_t checksum = 0;
    for (unsigned i = 0; i < CHANGES; i++)
        checksum += place_window(i % 2) * (i + 1);
    return fold(0, checksum);
}

const struct workload workload_ptemod = {.name = "ptemod", .nanobenchmark = "ptemod", .operations = CHANGES,
                                         .prepare = place_window_prepare, .batch = batch};
