/* A byte read from a port that holds what was once written to it: the scratch register of the UART. */
#include "workload.h"

#define EIGHTS 2
#define VALUE 0x5a

static const char *prepare(void)
{
    return place_port_prepare(VALUE);
}

static uint64_t batch(void)
{
    return fold(0, place_port(EIGHTS));
}

const struct workload workload_portin = {
    .name = "portin", .nanobenchmark = "in", .operations = EIGHTS * 8, .prepare = prepare, .batch = batch};
