/* Calls and returns: what binary translation pays for and hardware does not. */
#include "workload.h"

#define CALLS 4096

static uint64_t depth;

__attribute__((noinline)) static uint64_t callee(uint64_t x)
{
    __asm__ volatile("" : "+r"(x)); /* so that no call is computed ahead or merged with another */
    return x + depth;
}

static uint64_t batch(void)
{
    uint64_t x = 1;
    depth = 3;
    for (unsigned i = 0; i < CALLS; i += 8) {
        x = callee(x), x = callee(x), x = callee(x), x = callee(x);
        x = callee(x), x = callee(x), x = callee(x), x = callee(x);
    }
    return fold(0, x);
}

const struct workload workload_call = {
    .name = "call", .nanobenchmark = "callret", .operations = CALLS, .batch = batch};
