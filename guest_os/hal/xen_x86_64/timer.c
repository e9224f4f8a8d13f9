/* The tick: Xen's one-shot timer, set again for each; and Xen's clock (xen.h, struct vcpu_time_info). */
#include "domain.h"
#include "hal.h"

#define NANOSECONDS 1000000000ull

static volatile uint64_t ticks;
static uint64_t period; /* ns; 0: stopped */
static uint64_t next;   /* system time of the next tick */

/* System time, ns. */
static uint64_t now(void)
{
    volatile const struct vcpu_time_info *time = &shared_info.vcpu_info[0].time;
    for (;;) {
        uint32_t version = time->version, low, high;
        __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high) : : "memory");
        uint64_t delta = ((uint64_t)high << 32 | low) - time->tsc_timestamp;
        delta = time->tsc_shift < 0 ? delta >> -time->tsc_shift : delta << time->tsc_shift;
        uint64_t elapsed = (uint64_t)((unsigned __int128)delta * time->tsc_to_system_mul >> 32);
        uint64_t system = time->system_time + elapsed;
        __atomic_signal_fence(__ATOMIC_SEQ_CST); /* x86 keeps loads in order */
        if ((version & 1) == 0 && version == time->version)
            return system;
    }
}

static void set_timer(void)
{
    struct vcpu_set_singleshot_timer timer = {next, 0}; /* a time already past: at once */
    HYPERVISOR_vcpu_op(VCPUOP_set_singleshot_timer, 0, &timer);
}

/* Xen may raise the interrupt on other occasions too (VIRQ_TIMER: "timebase update, and/or requested timeout"): only
 * the clock says which ticks have passed. */
static void tick(void *context)
{
    (void)context;
    if (period == 0)
        return;
    for (uint64_t time = now(); next <= time; next += period)
        ticks++;
    set_timer();
}

void hal_timer_start(unsigned hertz)
{
    static uint32_t port;
    period = NANOSECONDS / hertz;
    next = now() + period;
    if (port == 0) {
        port = event_bind_virq(VIRQ_TIMER);
        event_handle(port, tick, NULL);
    }
    set_timer();
}

void hal_timer_stop(void)
{
    period = 0;
    HYPERVISOR_vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL);
}

uint64_t hal_ticks(void)
{
    return ticks;
}
