/* Makes one hypercall `count=N` times: `call=null`, `send`, `map`, `list` on the command line. For the benchmarks. */
#include "../hal/xen_x86_64/domain.h"
#include "kernel.h"

#define HERTZ 100
#define WINDOW 0x30000000 /* in a user half made for the purpose */
#define PAGES 64          /* of the window: as many entries has a list */

/* xen_version(XENVER_version): reads six registers, writes one, does nothing. */
static void null(uint64_t count)
{
    while (count-- > 0)
        HYPERCALL(xen_version, 0, 0, 0, 0);
}

/* An event for the second processor, which has its own masked: all but the upcall happens each time. */
static void send(uint64_t count)
{
    hal_timer_start(HERTZ);
    hal_cpus_start();
    while (hal_cpus() < 2)
        hal_wait();
    hal_timer_stop();
    struct vcpu_info *other = &shared_info.vcpu_info[1];
    struct evtchn_bind_ipi bind = {1, 0};
    if (HYPERVISOR_event_channel_op(EVTCHNOP_bind_ipi, &bind) != 0)
        panic("no event channel for the second processor");
    struct evtchn_unmask unmask = {bind.port};
    HYPERVISOR_event_channel_op(EVTCHNOP_unmask, &unmask);
    while (count-- > 0) {
        event_send(bind.port);
        event_clear(bind.port);
        __atomic_store_n(&other->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&other->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    }
}

/* PAGES pages of a window, each on one of two frames. */
static void change_pages(uint64_t count, bool together)
{
    uint64_t frame[2] = {frames_take(PAGE_SIZE), frames_take(PAGE_SIZE)};
    struct page_change changes[PAGES];
    struct space *space = hal_space_create();
    for (unsigned i = 0; i < PAGES; i++) {
        if (space == NULL || !hal_space_map(space, WINDOW + i * PAGE_SIZE, frame[0], PAGE_SIZE, PAGE_USER | PAGE_WRITE))
            panic("no memory for a window");
        changes[i].address = WINDOW + i * PAGE_SIZE;
        changes[i].entry = hal_space_entry(space, changes[i].address);
    }
    hal_space_switch(space);
    for (uint64_t i = 0; i < count; i += PAGES) {
        uint64_t physical = frame[(i / PAGES + 1) % 2];
        for (unsigned page = 0; page < PAGES; page++)
            if (together)
                changes[page].physical = physical;
            else
                hal_page_change(changes[page].entry, changes[page].address, physical, PAGE_USER | PAGE_WRITE);
        if (together)
            hal_pages_change(changes, PAGES, PAGE_USER | PAGE_WRITE);
    }
    hal_space_switch(NULL);
}

int guest_main(void)
{
    size_t length;
    uint64_t count = command_line_number("count", 0);
    const char *call = command_line_value("call", 0, &length);
    switch (call != NULL && length > 0 ? call[0] : '\0') {
    case 'n':
        null(count);
        return 0;
    case 's':
        send(count);
        return 0;
    case 'm':
    case 'l':
        change_pages(count, call[0] == 'l');
        return 0;
    default:
        print("call=null, send, map or list\n");
        return 1;
    }
}
