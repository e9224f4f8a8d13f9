/* Event channels, two-level (event_channel.h; xen.h, struct shared_info): a domain's interrupts. */
#include "domain.h"
#include "kernel.h"

#define PORTS 64 /* more than this layer binds, in the first word of the bitmaps */

struct handler {
    void (*function)(void *);
    void *context;
};
static struct handler handlers[PORTS];

void events_start(void)
{
    for (unsigned word = 0; word < ARRAY_SIZE(shared_info.evtchn_mask); word++)
        shared_info.evtchn_mask[word] = UINT64_MAX;
}

void event_handle(uint32_t port, void (*function)(void *), void *context)
{
    if (port >= PORTS)
        panic("event channel %u is beyond the first %u", port, PORTS);
    handlers[port] = (struct handler){function, context};
    struct evtchn_unmask unmask = {port};
    HYPERVISOR_event_channel_op(EVTCHNOP_unmask, &unmask); /* and not a store: what came before is delivered */
}

static uint64_t bit(uint32_t port)
{
    return 1ull << port % 64;
}

bool event_clear(uint32_t port)
{
    return __atomic_fetch_and(&shared_info.evtchn_pending[port / 64], ~bit(port), __ATOMIC_SEQ_CST) & bit(port);
}

void event_send(uint32_t port)
{
    struct evtchn_send send = {port};
    HYPERVISOR_event_channel_op(EVTCHNOP_send, &send);
}

/* From event_entry (entry.S): what is pending and not masked, found through the selector word, whose bits are words. */
void events_pending(void)
{
    struct vcpu_info *vcpu = &shared_info.vcpu_info[0];
    *(volatile uint8_t *)&vcpu->evtchn_upcall_pending = 0; /* before looking: what comes now sets it again */
    uint64_t words = __atomic_exchange_n(&vcpu->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    for (; words != 0; words &= words - 1) {
        unsigned word = (unsigned)__builtin_ctzll(words);
        for (;;) {
            uint64_t bits = *(volatile uint64_t *)&shared_info.evtchn_pending[word] & ~shared_info.evtchn_mask[word];
            if (bits == 0)
                break;
            uint32_t port = word * 64 + (uint32_t)__builtin_ctzll(bits);
            event_clear(port);
            if (port < PORTS && handlers[port].function != NULL)
                handlers[port].function(handlers[port].context);
        }
    }
}

void hal_wait(void)
{
    HYPERVISOR_sched_op(SCHEDOP_block, NULL); /* lets events in and sleeps, with no moment between */
    *(volatile uint8_t *)&shared_info.vcpu_info[0].evtchn_upcall_mask = 1;
}

/* A domain has no interrupt lines unless it is given real devices. */
bool hal_irq_handle(unsigned line, void (*handler)(void *), void *context)
{
    (void)line, (void)handler, (void)context;
    return false;
}

uint32_t event_bind_ipi(void)
{
    struct evtchn_bind_ipi bind = {0, 0};
    int64_t result = HYPERVISOR_event_channel_op(EVTCHNOP_bind_ipi, &bind);
    if (result != 0)
        panic("Xen gives no event channel to oneself: %ld", result);
    return bind.port;
}

uint32_t event_bind_virq(uint32_t virq)
{
    struct evtchn_bind_virq bind = {virq, 0, 0};
    int64_t result = HYPERVISOR_event_channel_op(EVTCHNOP_bind_virq, &bind);
    if (result != 0)
        panic("Xen gives no event channel for virtual interrupt %u: %ld", virq, result);
    return bind.port;
}

static uint32_t self_port;

void hal_self_interrupt_handle(void (*function)(void *), void *context)
{
    if (self_port == 0)
        self_port = event_bind_ipi();
    event_handle(self_port, function, context);
}

void hal_self_interrupt(void)
{
    event_send(self_port);
}
