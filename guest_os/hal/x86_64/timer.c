/* The tick: channel 0 of the 8254 (Intel 8254 data sheet), which comes in at IOAPIC pin 2 as on every PC, or
 * at pin 0 where a VMM leaves KVM's default interrupt routing as it is. */
#include "hal.h"
#include "instructions.h"

#define PIT_CHANNEL0 0x40
#define PIT_CONTROL 0x43
#define PIT_RATE_GENERATOR 0x34 /* channel 0, low then high byte, mode 2 */
#define PIT_ONE_SHOT 0x30       /* channel 0, mode 0: loaded with nothing, it stays quiet */
#define PIT_HERTZ 1193182
#define PIT_LINE 2
#define PIT_LINE_UNROUTED 0

static volatile uint64_t ticks;

static void tick(void *context)
{
    (void)context;
    ticks++;
}

void hal_timer_start(unsigned hertz)
{
    unsigned divisor = PIT_HERTZ / hertz;
    if (divisor > 0xffff)
        divisor = 0xffff;
    hal_irq_handle(PIT_LINE, tick, NULL);
    hal_irq_handle(PIT_LINE_UNROUTED, tick, NULL);
    out8(PIT_CONTROL, PIT_RATE_GENERATOR);
    out8(PIT_CHANNEL0, (uint8_t)divisor);
    out8(PIT_CHANNEL0, (uint8_t)(divisor >> 8));
}

void hal_timer_stop(void)
{
    out8(PIT_CONTROL, PIT_ONE_SHOT);
}

uint64_t hal_ticks(void)
{
    return ticks;
}
