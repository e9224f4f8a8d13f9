/* The console: two rings of bytes in a page shared with the back end, and an event channel (io/console.h). */
#include "domain.h"
#include "kernel.h"

static struct xencons_interface *ring; /* NULL: the builder gave none */
static uint32_t port;
static bool input_was_full;

/* The page is one of those the builder mapped after the image: found by its frame number. Xen's first domain has none,
 * and reads as port 0 here. */
void hal_console_start(void)
{
    port = start_info->console.domU.evtchn;
    if (port != 0)
        ring = page_of_frame(start_info->console.domU.mfn, (void *)KERNEL_BASE, start_info->nr_pages);
}

/* The port's own event says that the back end has read or written something. A pending event ends the waiting at once,
 * so it is cleared and the ring looked at again before each; whoever waits for input looks at the ring first, too. */
static void wait_for_room(uint32_t producer)
{
    const struct sched_poll poll = {.ports = &port, .nr_ports = 1, .timeout = 0}; /* 0: for ever */
    for (;;) {
        event_clear(port);
        if (producer - __atomic_load_n(&ring->out_cons, __ATOMIC_ACQUIRE) < sizeof ring->out)
            return;
        HYPERVISOR_sched_op(SCHEDOP_poll, &poll);
    }
}

/* Cost: one hypercall a call, unless the ring fills up. */
void hal_console_write(const char *text, size_t length)
{
    if (ring == NULL) {
        HYPERVISOR_console_write(text, length); /* the emergency console; nobody may be listening */
        return;
    }
    uint32_t producer = ring->out_prod;
    while (length > 0) {
        uint32_t at = producer % sizeof ring->out;
        uint64_t part = sizeof ring->out - (producer - __atomic_load_n(&ring->out_cons, __ATOMIC_ACQUIRE));
        if (part > sizeof ring->out - at)
            part = sizeof ring->out - at;
        if (part > length)
            part = length;
        memcpy(ring->out + at, text, part);
        producer += part;
        text += part;
        length -= part;
        __atomic_store_n(&ring->out_prod, producer, __ATOMIC_RELEASE);
        if (length > 0 && producer - __atomic_load_n(&ring->out_cons, __ATOMIC_ACQUIRE) == sizeof ring->out) {
            event_send(port);
            wait_for_room(producer);
        }
    }
    event_send(port);
}

static void woken(void *context)
{
    (void)context; /* the ring is looked at by whoever waits */
}

void hal_console_listen(void)
{
    if (ring != NULL)
        event_handle(port, woken, NULL);
}

/* The back end is told when a full ring is empty again: it may have more. */
int hal_console_read(void)
{
    if (ring == NULL)
        return -1;
    uint32_t consumer = ring->in_cons;
    uint32_t available = __atomic_load_n(&ring->in_prod, __ATOMIC_ACQUIRE) - consumer;
    if (available == 0)
        return -1;
    input_was_full |= available >= sizeof ring->in;
    int byte = (uint8_t)ring->in[consumer % sizeof ring->in];
    __atomic_store_n(&ring->in_cons, consumer + 1, __ATOMIC_RELEASE);
    if (available == 1 && input_was_full) {
        input_was_full = false;
        event_send(port);
    }
    return byte;
}
