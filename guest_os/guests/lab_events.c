/* Does one thing with event channels for each line it is typed, and shows the bits: for `vtk lab run event-channels`.
 *
 * Its kernel runs with events masked, so what is delivered stays to be seen until `take` or `wait` lets it in. Lines are
 * awaited by polling the console's port, which stays masked: no bit but those of the experiment ever moves.
 */
#include "../hal/xen_x86_64/domain.h"
#include "kernel.h"

#define PORTS 64
#define MILLISECOND 1000000ull

static volatile unsigned handled[PORTS];

static void count(void *context)
{
    handled[(uint64_t)context]++;
}

static void read_line(char *line, size_t size)
{
    uint32_t console = start_info->console.domU.evtchn;
    const struct sched_poll poll = {.ports = &console, .nr_ports = 1};
    size_t length = 0;
    for (;;) {
        int byte = hal_console_read();
        if (byte < 0) {
            event_clear(console);
            byte = hal_console_read();
        }
        if (byte == '\n')
            break;
        if (byte >= 0 && length + 1 < size)
            line[length++] = (char)byte;
        else if (byte < 0)
            HYPERVISOR_sched_op(SCHEDOP_poll, &poll);
    }
    line[length] = '\0';
}

static void show(const char *did, int64_t result, uint32_t port)
{
    const struct vcpu_info *vcpu = &shared_info.vcpu_info[0];
    uint64_t bit = 1ull << port % 64;
    print("{\"did\":\"%s\",\"result\":%ld,\"port\":%u,\"pending\":%d,\"mask\":%d,\"selected\":%d,\"upcall\":%d,"
          "\"handled\":%u}\n",
          did, result, port, (shared_info.evtchn_pending[port / 64] & bit) != 0,
          (shared_info.evtchn_mask[port / 64] & bit) != 0, (int)(vcpu->evtchn_pending_sel >> port / 64 & 1),
          vcpu->evtchn_upcall_pending, handled[port % PORTS]);
}

static void handle(int64_t result, uint32_t port)
{
    if (result == 0)
        event_handle(port, count, (void *)(uint64_t)port);
}

static uint32_t bind(uint64_t domain, uint64_t remote_port, int64_t *result)
{
    struct evtchn_bind_interdomain bind = {(uint16_t)domain, (uint32_t)remote_port, 0};
    *result = HYPERVISOR_event_channel_op(EVTCHNOP_bind_interdomain, &bind);
    handle(*result, bind.local_port);
    return bind.local_port;
}

static uint32_t offer(uint64_t domain, int64_t *result)
{
    struct evtchn_alloc_unbound alloc = {DOMID_SELF, (uint16_t)domain, 0};
    *result = HYPERVISOR_event_channel_op(EVTCHNOP_alloc_unbound, &alloc);
    handle(*result, alloc.port);
    return alloc.port;
}

/* The timer's virtual interrupt, so many milliseconds from the last time Xen wrote: the port it has. */
static uint32_t set_timer(uint64_t milliseconds, int64_t *result)
{
    static uint32_t port;
    if (port == 0)
        port = event_bind_virq(VIRQ_TIMER);
    event_handle(port, count, (void *)(uint64_t)port);
    struct vcpu_set_singleshot_timer timer = {
        shared_info.vcpu_info[0].time.system_time + milliseconds * MILLISECOND, 0};
    *result = HYPERVISOR_vcpu_op(VCPUOP_set_singleshot_timer, 0, &timer);
    return port;
}

/* What masks is the guest's own store; what unmasks is a hypercall, as something may wait behind it. */
static void mask(uint32_t port)
{
    __atomic_fetch_or(&shared_info.evtchn_mask[port / 64], 1ull << port % 64, __ATOMIC_SEQ_CST);
}

static int64_t port_operation(unsigned command, uint32_t port)
{
    struct evtchn_send argument = {port};
    return HYPERVISOR_event_channel_op(command, &argument);
}

/* The line's words: a letter-only verb and up to two numbers. */
static unsigned split(char *line, uint64_t number[2])
{
    unsigned count = 0;
    for (char *at = line; *at != '\0'; at++) {
        if (*at != ' ')
            continue;
        *at = '\0';
        size_t length = 0;
        while (at[1 + length] != '\0' && at[1 + length] != ' ')
            length++;
        if (count < 2 && text_number(at + 1, length, &number[count]))
            count++;
    }
    return count;
}

int guest_main(void)
{
    char verb[64];
    print("{\"ready\":\"lab_events\"}\n");
    for (;;) {
        uint64_t number[2] = {0, 0};
        int64_t result = 0;
        read_line(verb, sizeof verb);
        split(verb, number);
        uint32_t port = (uint32_t)(number[0] % PORTS);
        if (text_equal(verb, "quit"))
            return 0;
        if (text_equal(verb, "offer"))
            port = offer(number[0], &result);
        else if (text_equal(verb, "bind"))
            port = bind(number[0], number[1], &result);
        else if (text_equal(verb, "timer"))
            port = set_timer(number[0], &result);
        else if (text_equal(verb, "send"))
            result = port_operation(EVTCHNOP_send, port);
        else if (text_equal(verb, "unmask"))
            result = port_operation(EVTCHNOP_unmask, port);
        else if (text_equal(verb, "mask"))
            mask(port);
        else if (text_equal(verb, "wait") || (text_equal(verb, "take") && shared_info.vcpu_info[0].evtchn_upcall_pending))
            hal_wait();
        show(verb, result, port);
    }
}
