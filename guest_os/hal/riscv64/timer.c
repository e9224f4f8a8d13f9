/* The tick: `time` counts, and the SBI of boot.S interrupts when it reaches what it was told. */
#include "hal.h"
#include "machine.h"
#include "riscv.h"

static volatile uint64_t ticks;
static uint64_t period, next; /* of `time` */

static void set_timer(uint64_t time)
{
    register uint64_t a0 __asm__("a0") = time, a6 __asm__("a6") = SBI_SET_TIMER, a7 __asm__("a7") = SBI_EXT_TIME;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a6), "r"(a7) : "a1", "memory");
}

void timer_interrupt(void)
{
    ticks++;
    next += period;
    set_timer(next);
}

void hal_timer_start(unsigned hertz)
{
    period = device_tree_timebase() / hertz;
    next = read_csr(time) + period;
    set_timer(next);
    set_csr(sie, IP_STIP);
}

void hal_timer_stop(void)
{
    clear_csr(sie, IP_STIP);
    set_timer(UINT64_MAX);
}

uint64_t hal_ticks(void)
{
    return ticks;
}
