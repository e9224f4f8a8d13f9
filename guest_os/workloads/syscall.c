/* The null system call: into the kernel and out again. In a Linux process: getppid, by the same instruction. */
#include "workload.h"

#define CALLS 64

static uint64_t batch(void)
{
    uint64_t done = 0;
    for (unsigned i = 0; i < CALLS; i++) {
        place_null_call();
        done++;
    }
    return fold(0, done);
}

const struct workload workload_syscall = {
    .name = "syscall", .nanobenchmark = "syscall", .operations = CALLS, .batch = batch};
