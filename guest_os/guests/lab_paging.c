/* Tries to get at memory it may not have by its own page tables: for `vtk lab run direct-paging`.
 *
 * `foreign=MFN` on the command line is a frame of somebody else's. Everything tried is one line: what Xen answered, or
 * that the kernel's own page-fault handler was called.
 */
#include "../hal/xen_x86_64/domain.h"
#include "kernel.h"
#include "paging.h"

#define WINDOW 0x30000000 /* two pages in a user half made for the purpose */
#define OTHER (WINDOW + PAGE_SIZE)
#define READ_ONLY (PTE_P | PTE_U | PTE_A | PTE_D)
#define WRITABLE (READ_ONLY | PTE_W)
#define XEN_SLOT 256
#define XEN_STUB 0xffff828000000000 /* slot 261: Xen's own */
#define MARK 0x600d600d600d600d

static struct space *space;
static struct space *page[3]; /* three frames: a page of data, one that becomes a table, one that is no table */

static void report(const char *what, int64_t result)
{
    print("{\"try\":\"%s\",\"result\":%ld}\n", what, result);
}

/* ---- loads and stores that may fault ----------------------------------------------------------------------------- */

extern char after_access[];

/* A load when `value` is 0, else a store of it. What is printed: whether the kernel's page-fault handler was called. */
static __attribute__((noinline)) void access(const char *what, uint64_t address, uint64_t value)
{
    kernel_recovery = (uint64_t)after_access;
    kernel_last_trap = (struct trap){.name = NULL};
    __asm__ volatile("test %1, %1\n\t"
                     "jz 1f\n\t"
                     "mov %1, (%0)\n\t"           /* the store */
                     "jmp after_access\n"
                     "1:\tmov (%0), %%rax\n\t"    /* the load */
                     ".globl after_access\n"
                     "after_access:"              /* here from a fault too */
                     :
                     : "c"(address), "S"(value)
                     : "rax", "rdx", "memory", "cc");
    kernel_recovery = 0;
    print("{\"try\":\"%s\",\"fault\":\"%s\",\"address\":%lu}\n", what,
          kernel_last_trap.name != NULL ? kernel_last_trap.name : "", kernel_last_trap.address);
}

/* ---- what a domain asks for ----------------------------------------------------------------------------------------- */

static int64_t update(const void *entry, uint64_t value)
{
    struct mmu_update request = {machine_address(entry) | MMU_NORMAL_PT_UPDATE, value};
    return HYPERVISOR_mmu_update(&request, 1);
}

static int64_t map(uint64_t address, uint64_t entry)
{
    return HYPERVISOR_update_va_mapping(address, entry, UVMF_INVLPG);
}

static int64_t operate(unsigned command, const void *frame)
{
    struct mmuext_op operation = {.cmd = command, .arg1.mfn = machine_address(frame) / PAGE_SIZE};
    return HYPERVISOR_mmuext_op(&operation, 1);
}

static bool prepare(void)
{
    space = hal_space_create();
    for (unsigned i = 0; i < ARRAY_SIZE(page); i++) {
        uint64_t frame = frames_take(PAGE_SIZE);
        if (frame == 0 || space == NULL)
            return false;
        page[i] = hal_kernel_address(frame);
        memset(page[i], 0, PAGE_SIZE);
    }
    if (!hal_space_map(space, WINDOW, hal_physical(page[0]), PAGE_SIZE, PAGE_USER | PAGE_WRITE))
        return false;
    page[0]->entry[0] = MARK;
    hal_space_switch(space);
    return true;
}

/* ---- the attempts --------------------------------------------------------------------------------------------------- */

static void attack_own_tables(const uint64_t *entry)
{
    const struct space *table = (const struct space *)((uint64_t)entry & ~(PAGE_SIZE - 1));
    report("map a page table writable", map(OTHER, machine_address(table) | WRITABLE));
    access("store a writable mapping of a page table into it", (uint64_t)(entry + 1), machine_address(table) | WRITABLE);
    report("pin a writable page as a page table", operate(MMUEXT_PIN_L1_TABLE, page[2]));
    report("run on a writable page as the root", operate(MMUEXT_NEW_BASEPTR, page[2]));

    /* A forged table, made while it was an ordinary page: it maps the root of the address space writable. */
    page[2]->entry[0] = machine_address(space) | WRITABLE;
    map((uint64_t)page[2], machine_address(page[2]) | READ_ONLY);
    report("pin a page that maps the root writable", operate(MMUEXT_PIN_L1_TABLE, page[2]));
}

/* The page is written to, made read-only, made a table; the old mapping may be in the TLB still. */
static void attack_by_old_mapping(uint64_t foreign)
{
    page[1]->entry[0] = 0;
    int64_t made = map((uint64_t)page[1], machine_address(page[1]) | READ_ONLY);
    made |= operate(MMUEXT_PIN_L1_TABLE, page[1]);
    report("(make a page a table)", made);
    access("store another's frame into it by its old mapping", (uint64_t)page[1], foreign * PAGE_SIZE | WRITABLE);
    report("map it writable while it is a table", map((uint64_t)page[1], machine_address(page[1]) | WRITABLE));
}

static void attack_others(uint64_t foreign)
{
    uint64_t *middle = paging_walk(space, WINDOW, 1, false);
    report("map another domain's frame", map(OTHER, foreign * PAGE_SIZE | READ_ONLY));
    report("map another domain's frame writable", map(OTHER, foreign * PAGE_SIZE | WRITABLE));
    report("link another domain's frame as a page table", update(middle + 1, foreign * PAGE_SIZE | WRITABLE));
    report("write to another domain's frame by mmu_update",
           HYPERVISOR_mmu_update(&(struct mmu_update){foreign * PAGE_SIZE | MMU_NORMAL_PT_UPDATE, MARK}, 1));
}

static void attack_xen(void)
{
    report("take a slot of Xen's in the root", update(&space->entry[XEN_SLOT], machine_address(page[1]) | WRITABLE));
    report("map a page at an address of Xen's", map(XEN_STUB, machine_address(page[0]) | WRITABLE));
    access("read Xen's memory", XEN_STUB, 0);
}

/* What a kernel may do still works: by hypercall, and by a store that Xen carries out. */
static void do_what_is_allowed(uint64_t *entry)
{
    uint64_t mapping = machine_address(page[0]) | WRITABLE;
    report("(map its own frame)", map(OTHER, mapping));
    print("{\"try\":\"(read it there)\",\"holds\":%s}\n", *(volatile uint64_t *)OTHER == MARK ? "true" : "false");
    report("(take it away)", map(OTHER, 0));
    access("(store a mapping of its own frame into the table)", (uint64_t)(entry + 1), mapping);
    print("{\"try\":\"(read it there again)\",\"holds\":%s}\n", *(volatile uint64_t *)OTHER == MARK ? "true" : "false");
    report("(unpin the table)", operate(MMUEXT_UNPIN_TABLE, page[1]));
    report("(map the former table writable)", map((uint64_t)page[1], machine_address(page[1]) | WRITABLE));
}

int guest_main(void)
{
    uint64_t foreign = command_line_number("foreign", 0);
    if (foreign == 0 || !prepare())
        panic("foreign=MFN is needed, and memory for three pages");
    uint64_t *entry = paging_walk(space, WINDOW, 0, false);
    attack_own_tables(entry);
    attack_by_old_mapping(foreign);
    attack_others(foreign);
    attack_xen();
    do_what_is_allowed(entry);
    return 0;
}
