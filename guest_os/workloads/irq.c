/* An interrupt sent to oneself and delivered. In a Linux process: a signal. */
#include "workload.h"

#define INTERRUPTS 16

static uint64_t batch(void)
{
    uint64_t before = place_interrupt(), after = before;
    for (unsigned i = 1; i < INTERRUPTS; i++)
        after = place_interrupt();
    return fold(0, after - before); /* each was delivered once */
}

const struct workload workload_irq = {
    .name = "irq", .operations = INTERRUPTS, .prepare = place_interrupt_prepare, .batch = batch};
