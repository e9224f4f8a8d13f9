/* Interrupts: the local APIC (SDM 11) and the IOAPIC (Intel 82093AA data sheet). The 8259s are left alone: nothing of
 * theirs passes once LINT0 is masked. */
#include "instructions.h"
#include "interrupts.h"
#include "kernel.h"
#include "machine.h"

#define LAPIC_PHYSICAL 0xfee00000
#define IOAPIC_PHYSICAL 0xfec00000

/* Local APIC register offsets (SDM table 11-1) */
enum lapic {
    LAPIC_ID = 0x020,
    LAPIC_TPR = 0x080,
    LAPIC_EOI = 0x0b0,
    LAPIC_SPIV = 0x0f0,
    LAPIC_ICR_LOW = 0x300,
    LAPIC_ICR_HIGH = 0x310,
    LAPIC_LVT_LINT0 = 0x350,
};
#define SPIV_ENABLE 0x100
#define LVT_MASKED 0x10000
#define ICR_SELF 0x40000
#define ICR_ALL_BUT_SELF 0xc0000
#define ICR_PENDING 0x1000

/* IOAPIC: an index register and a window */
#define IOREGSEL 0x00
#define IOWIN 0x10
#define IOREDTBL(pin) (0x10 + 2 * (pin)) /* low half: vector, mode 0 = fixed, edge, active high; bit 16 masks */

struct handler {
    void (*function)(void *);
    void *context;
};
static struct handler handlers[256]; /* by vector */

static volatile uint32_t *device(uint64_t physical)
{
    return (volatile uint32_t *)(physical - DEVICE_PHYSICAL + DEVICE_BASE);
}

static uint32_t lapic_read(enum lapic offset)
{
    return device(LAPIC_PHYSICAL)[offset / 4];
}

static void lapic_write(enum lapic offset, uint32_t value)
{
    device(LAPIC_PHYSICAL)[offset / 4] = value;
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    device(IOAPIC_PHYSICAL)[IOREGSEL / 4] = index;
    device(IOAPIC_PHYSICAL)[IOWIN / 4] = value;
}

void apic_start(void)
{
    static bool started;
    if (started)
        return;
    started = true;
    lapic_write(LAPIC_LVT_LINT0, LVT_MASKED);
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_SPIV, SPIV_ENABLE | VECTOR_SPURIOUS);
}

bool hal_irq_handle(unsigned line, void (*function)(void *), void *context)
{
    if (line >= IRQ_LINES)
        return false;
    apic_start();
    handlers[VECTOR_IRQ + line] = (struct handler){function, context};
    ioapic_write(IOREDTBL(line) + 1, lapic_read(LAPIC_ID) & 0xff000000); /* destination: this CPU */
    ioapic_write(IOREDTBL(line), VECTOR_IRQ + line);
    return true;
}

void hal_self_interrupt_handle(void (*function)(void *), void *context)
{
    apic_start();
    handlers[VECTOR_SELF] = (struct handler){function, context};
}

void hal_self_interrupt(void)
{
    lapic_write(LAPIC_ICR_LOW, ICR_SELF | VECTOR_SELF);
}

void apic_send_to_others(uint32_t command)
{
    lapic_write(LAPIC_ICR_LOW, ICR_ALL_BUT_SELF | command);
    while (lapic_read(LAPIC_ICR_LOW) & ICR_PENDING)
        ;
}

/* From interrupt_common (traps.S). */
void interrupt_handle(uint64_t vector)
{
    const struct handler *handler = &handlers[vector];
    if (handler->function == NULL)
        return; /* spurious: no end-of-interrupt (SDM 11.9) */
    handler->function(handler->context);
    lapic_write(LAPIC_EOI, 0);
}
