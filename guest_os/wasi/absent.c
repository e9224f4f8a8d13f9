/* What a WebAssembly module cannot have: it sees its own memory and the functions it imports, no processor beneath them.
 * A trap ends it (Core Specification, 4.4): no program goes on behind one, so the workloads that do are refused here, in
 * place of workloads/divzero.c and pgfault.c. */
#include "workload.h"

#define TRAPS UNSUPPORTED "a trap ends a WebAssembly module, no handler goes on behind it"

static const char *no_recovery(void)
{
    return TRAPS;
}

static uint64_t nothing(void)
{
    return FAILED;
}

const struct workload workload_divzero = {
    .name = "divzero", .nanobenchmark = "divzero", .operations = 1, .prepare = no_recovery, .batch = nothing};
const struct workload workload_pgfault = {
    .name = "pgfault", .nanobenchmark = "pgfault", .operations = 1, .prepare = no_recovery, .batch = nothing};

const char *place_privileged_prepare(void)
{
    return UNSUPPORTED "a WebAssembly module has no control registers";
}

const char *place_port_prepare(uint8_t value)
{
    (void)value;
    return UNSUPPORTED "a WebAssembly module has no I/O ports";
}

const char *place_device_prepare(void)
{
    return UNSUPPORTED "a WebAssembly module has no device registers";
}

const char *place_window_prepare(void)
{
    return UNSUPPORTED "the memory of a WebAssembly module has no page tables";
}

const char *place_windows_prepare(void)
{
    return place_window_prepare();
}

const char *place_spaces_prepare(void)
{
    return UNSUPPORTED "a WebAssembly module has one memory, and no other to go to";
}

const char *place_interrupt_prepare(void)
{
    return UNSUPPORTED "nothing interrupts a WebAssembly module";
}

/* Never called: each was refused. */
uint64_t place_privileged(unsigned eights)
{
    (void)eights;
    return FAILED;
}

uint64_t place_port(unsigned eights)
{
    (void)eights;
    return FAILED;
}

uint64_t place_device(unsigned eights)
{
    (void)eights;
    return FAILED;
}

uint64_t place_window(unsigned i)
{
    (void)i;
    return FAILED;
}

uint64_t place_windows(unsigned i)
{
    (void)i;
    return FAILED;
}

uint64_t place_space(unsigned i)
{
    (void)i;
    return FAILED;
}

uint64_t place_interrupt(void)
{
    return FAILED;
}
