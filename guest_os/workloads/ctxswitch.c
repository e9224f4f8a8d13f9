/* A switch of address spaces; each is proven by reading, at one address, the word only that space has there. */
#include "workload.h"

#define SWITCHES 16

static uint64_t batch(void)
{
    uint64_t checksum = 0;
    for (unsigned i = 0; i < SWITCHES; i++)
        checksum += place_space((i + 1) % 2) * (i + 1);
    return fold(0, checksum);
}

const struct workload workload_ctxswitch = {
    .name = "ctxswitch", .operations = SWITCHES, .prepare = place_spaces_prepare, .batch = batch};
