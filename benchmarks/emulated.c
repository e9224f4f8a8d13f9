/* The workloads as an ordinary program for Linux on RISC-V, so that different emulators run one and the same file.
 * Usage: emulated WORKLOAD BATCHES. Writes the two lines of workload_run() (guest_os/workloads/run.c). */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workload.h"

extern const struct workload workload_cpu, workload_memory, workload_call;
static const struct workload *const known[] = {&workload_cpu, &workload_memory, &workload_call};

void place_write(const char *text, size_t length)
{
    if (write(1, text, length) != (ssize_t)length)
        exit(1);
}

void *place_memory(size_t bytes)
{
    return aligned_alloc(2 << 20, (bytes + (2 << 20) - 1) & -(size_t)(2 << 20));
}

int main(int argc, char **argv)
{
    for (unsigned i = 0; argc == 3 && i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i]->name, argv[1]) == 0) {
            workload_run(known[i], strtoull(argv[2], NULL, 10));
            return 0;
        }
    }
    return 2;
}
