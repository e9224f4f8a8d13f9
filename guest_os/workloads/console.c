/* A line of 64 bytes written to the console. */
#include "workload.h"

#define LINES 4

static uint64_t batch(void)
{
    static const char line[] = "console 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRS\n";
    _Static_assert(sizeof line - 1 == 64, "64 bytes with the newline");
    for (unsigned i = 0; i < LINES; i++)
        place_write(line, sizeof line - 1);
    return fold(0, LINES * (sizeof line - 1));
}

const struct workload workload_console = {.name = "console", .operations = LINES, .batch = batch};
