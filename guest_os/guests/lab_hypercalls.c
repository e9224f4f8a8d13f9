/* Asks Xen for the same 64 changes in three ways, then for what there is not: for `vtk lab run hypercalls`. */
#include "../hal/xen_x86_64/domain.h"
#include "kernel.h"
#include "registers.h"

#define PAGES 64
#define WINDOW 0x30000000
#define BITS (PTE_P | PTE_W | PTE_U | PTE_A | PTE_D)
#define __HYPERVISOR_nothing 60 /* a number that no hypercall has */

static uint64_t frame[2];        /* physical; they hold 1 and 2 */
static uint64_t *entry[PAGES];   /* of the window */

static uint64_t value(unsigned which)
{
    return machine_address(hal_kernel_address(frame[which])) | BITS;
}

static uint64_t address(unsigned page)
{
    return WINDOW + page * PAGE_SIZE;
}

/* Whoever counts exits counts those between these two lines. */
static void begin(const char *step)
{
    print("{\"begin\":\"%s\"}\n", step);
}

/* `sum`: what is read through the window after it, 64 for the first frame and 128 for the second. */
static void end(const char *step, int64_t result)
{
    print("{\"end\":\"%s\",\"result\":%ld}\n", step, result);
    uint64_t sum = 0;
    for (unsigned page = 0; page < PAGES; page++)
        sum += *(volatile const uint64_t *)address(page);
    print("{\"after\":\"%s\",\"sum\":%lu}\n", step, sum);
}

static bool open_window(void)
{
    struct space *space = hal_space_create();
    for (unsigned which = 0; which < 2; which++) {
        frame[which] = frames_take(PAGE_SIZE);
        if (frame[which] == 0)
            return false;
        *(volatile uint64_t *)hal_kernel_address(frame[which]) = which + 1;
    }
    for (unsigned page = 0; page < PAGES; page++) {
        if (space == NULL || !hal_space_map(space, address(page), frame[0], PAGE_SIZE, PAGE_USER | PAGE_WRITE))
            return false;
        entry[page] = hal_space_entry(space, address(page));
    }
    hal_space_switch(space);
    return true;
}

static void one_by_one(unsigned which)
{
    int64_t failed = 0;
    begin("single");
    for (unsigned page = 0; page < PAGES; page++)
        failed |= HYPERVISOR_update_va_mapping(address(page), value(which), UVMF_INVLPG);
    end("single", failed);
}

static void in_a_multicall(unsigned which)
{
    static struct multicall_entry calls[PAGES];
    for (unsigned page = 0; page < PAGES; page++)
        calls[page] = (struct multicall_entry){
            __HYPERVISOR_update_va_mapping, 0, {address(page), value(which), UVMF_INVLPG}};
    begin("multicall");
    int64_t failed = HYPERVISOR_multicall(calls, PAGES);
    for (unsigned page = 0; page < PAGES; page++)
        failed |= (int64_t)calls[page].result;
    end("multicall", failed);
}

static void in_a_list(unsigned which)
{
    static struct mmu_update requests[PAGES];
    for (unsigned page = 0; page < PAGES; page++)
        requests[page] = (struct mmu_update){machine_address(entry[page]) | MMU_NORMAL_PT_UPDATE, value(which)};
    begin("list");
    end("list", HYPERVISOR_mmu_update(requests, PAGES));
}

int guest_main(void)
{
    if (!open_window())
        panic("no memory for a window");
    one_by_one(1);
    in_a_multicall(0);
    in_a_list(1);
    begin("nothing");
    end("nothing", HYPERCALL(nothing, 0, 0, 0, 0));

    uint64_t count = command_line_number("null", 0);
    begin("null");
    for (uint64_t i = 0; i < count; i++)
        HYPERCALL(xen_version, 0, 0, 0, 0);
    end("null", 0);
    return 0;
}
