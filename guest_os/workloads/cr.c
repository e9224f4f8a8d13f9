/* A privileged register written and read back. Only a kernel has one. */
#include "workload.h"

#define EIGHTS 4

static uint64_t batch(void)
{
    return fold(0, place_privileged(EIGHTS));
}

const struct workload workload_cr = {.name = "cr", .nanobenchmark = "cr8wr", .operations = EIGHTS * 8,
                                     .prepare = place_privileged_prepare, .batch = batch};
