/* The other processors: woken by INIT and start-up interrupts (SDM 8.4.4.1), they begin in real mode at a page below
 * 1 MiB, where the trampoline (trampoline.S) is put. */
#include "interrupts.h"
#include "kernel.h"
#include "machine.h"

/* Interrupt command register (SDM 10.6.1): delivery modes, level assert */
#define ICR_INIT 0x4500
#define ICR_STARTUP 0x4600 /* vector = page number of the start address */

extern const char trampoline[], trampoline_end[];
volatile unsigned cpus_running = 1; /* counted up by each processor (trampoline.S) */

unsigned hal_cpus(void)
{
    return cpus_running;
}

static void wait_ticks(uint64_t count)
{
    for (uint64_t start = hal_ticks(); hal_ticks() - start < count;)
        hal_wait();
}

void hal_cpus_start(void)
{
    hal_boot_info(); /* the loader may have left it where the trampoline goes */
    memcpy(hal_kernel_address(TRAMPOLINE), trampoline, (size_t)(trampoline_end - trampoline));
    apic_start();
    apic_send_to_others(ICR_INIT);
    wait_ticks(2); /* 10 ms at least */
    apic_send_to_others(ICR_STARTUP | TRAMPOLINE >> 12);
    wait_ticks(1);
    apic_send_to_others(ICR_STARTUP | TRAMPOLINE >> 12); /* those that missed the first; others ignore it */
}
