/* Interrupts: the supervisor's software interrupt, its timer, and the devices' through the PLIC (RISC-V Platform-Level
 * Interrupt Controller Specification 1.0; on this board hart 0 in supervisor mode is context 1). */
#include "hal.h"
#include "machine.h"
#include "riscv.h"

#define CONTEXT 1
#define LINES 64
#define REGISTER(offset) ((volatile uint32_t *)(DEVICE_BASE + PLIC + (offset)))
#define PRIORITY(line) REGISTER(4 * (line))
#define ENABLE(line) REGISTER(0x2000 + 0x80 * CONTEXT + (line) / 32 * 4)
#define THRESHOLD REGISTER(0x200000 + 0x1000 * CONTEXT)
#define CLAIM REGISTER(0x200004 + 0x1000 * CONTEXT)

struct handler {
    void (*function)(void *);
    void *context;
};
static struct handler lines[LINES], self;

bool hal_irq_handle(unsigned line, void (*handler)(void *), void *context)
{
    if (line == 0 || line >= LINES)
        return false;
    lines[line] = (struct handler){handler, context};
    *PRIORITY(line) = 1;
    *ENABLE(line) |= 1u << line % 32;
    *THRESHOLD = 0;
    set_csr(sie, IP_SEIP);
    return true;
}

void hal_self_interrupt_handle(void (*handler)(void *), void *context)
{
    self = (struct handler){handler, context};
    set_csr(sie, IP_SSIP);
}

void hal_self_interrupt(void)
{
    set_csr(sip, IP_SSIP);
}

void interrupt_handle(uint64_t cause)
{
    switch (cause) {
    case CAUSE_SOFTWARE_INTERRUPT:
        clear_csr(sip, IP_SSIP);
        self.function(self.context);
        break;
    case CAUSE_TIMER_INTERRUPT:
        timer_interrupt();
        break;
    case CAUSE_EXTERNAL_INTERRUPT:
        for (uint32_t line; (line = *CLAIM) != 0; *CLAIM = line)
            if (line < LINES && lines[line].function != NULL)
                lines[line].function(lines[line].context);
        break;
    }
}

/* wfi goes on when an enabled interrupt is pending even while they are not let in (Privileged 3.3.3): none is lost. */
void hal_wait(void)
{
    __asm__ volatile("wfi" : : : "memory");
    set_csr(sstatus, SSTATUS_SIE);
    clear_csr(sstatus, SSTATUS_SIE);
}
