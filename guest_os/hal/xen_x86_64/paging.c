/* Address spaces under direct paging (Barham et al., SOSP 2003, 3.3.3): the page tables are the machine's own, hold
 * machine frame numbers, are read-only once in use, and are changed by hypercalls. What is to change is queued, in
 * order, and goes to Xen as one list.
 *
 * A space has two roots next to each other in the pool, as kernel and programs both run at ring 3: the kernel's shows
 * both halves, the user's the user half only. There are no large pages: 2 MiB are one page table full of entries.
 *
 * The builder mapped the start of the domain's memory at KERNEL_BASE; the rest follows 2 MiB at a time when the kernel
 * wants it (hal_kernel_open). The tables for that are the pages after the builder's last, one for each 2 MiB.
 */
#include "paging.h"
#include "domain.h"
#include "kernel.h"
#include "registers.h"

#define POOL_TABLES 96
static struct space pool[POOL_TABLES] __attribute__((aligned(4096)));
static bool maps_large[POOL_TABLES]; /* a page table that stands for one large page */
static unsigned pool_used;
static struct space *unused[POOL_TABLES]; /* pool tables given back: read-only to the kernel, and not cleared */
static unsigned unused_count;

static struct space *current; /* NULL: the kernel's own */

#define REACH 0x40000000ull /* what one level-2 table maps */

/* ---- machine addresses -------------------------------------------------------------------------------------------- */

static uint64_t machine(uint64_t physical)
{
    return ((const uint64_t *)start_info->mfn_list)[physical / PAGE_SIZE] * PAGE_SIZE + physical % PAGE_SIZE;
}

uint64_t machine_address(const void *kernel_address)
{
    return machine(hal_physical(kernel_address));
}

void *page_of_frame(uint64_t mfn, const void *first, uint64_t count)
{
    uint64_t pfn = hal_physical(first) / PAGE_SIZE;
    const uint64_t *mfns = (const uint64_t *)start_info->mfn_list;
    for (uint64_t i = pfn; i < pfn + count; i++)
        if (mfns[i] == mfn)
            return (void *)(KERNEL_BASE + i * PAGE_SIZE);
    return NULL;
}

/* ---- what is to change -------------------------------------------------------------------------------------------- */

static struct mmu_update queue[64];
static unsigned queued;

static void check(const char *what, int64_t result)
{
    if (result != 0)
        panic("Xen refused %s: %ld", what, result);
}

static void commit(void)
{
    if (queued != 0)
        check("mmu_update", HYPERVISOR_mmu_update(queue, queued));
    queued = 0;
}

static void change(const uint64_t *entry, uint64_t value)
{
    if (queued == ARRAY_SIZE(queue))
        commit();
    queue[queued++] = (struct mmu_update){machine_address(entry) | MMU_NORMAL_PT_UPDATE, value};
}

/* ---- the kernel half ------------------------------------------------------------------------------------------------ */

#define KERNEL_BITS (PTE_P | PTE_U | PTE_A | PTE_D) /* everything runs at ring 3 */
#define LINK_BITS (KERNEL_BITS | PTE_W)             /* tables allow everything: the leaf decides */

static struct space *boot_root(void)
{
    return (struct space *)start_info->pt_base;
}

/* The builder's pages end with the boot stack, after the page tables (xen.h, "Start-of-day memory layout"). */
static uint64_t builder_end(void)
{
    return hal_physical((void *)start_info->pt_base) + (start_info->nr_pt_frames + 1) * PAGE_SIZE;
}

static struct space *open_table(uint64_t chunk)
{
    return (struct space *)(KERNEL_BASE + builder_end() + chunk * PAGE_SIZE);
}

uint64_t hal_kernel_reach(void)
{
    uint64_t size = start_info->nr_pages * PAGE_SIZE;
    return size < REACH ? size : REACH;
}

static uint64_t chunks(void)
{
    return (hal_kernel_reach() + LARGE_PAGE_SIZE - 1) / LARGE_PAGE_SIZE;
}

uint64_t hal_kernel_end(void)
{
    return builder_end() + chunks() * PAGE_SIZE;
}

struct space *paging_table(uint64_t entry)
{
    uint64_t mfn = (entry & PHYSICAL_MASK) / PAGE_SIZE;
    struct space *table = page_of_frame(mfn, pool, pool_used);
    if (table == NULL)
        table = page_of_frame(mfn, boot_root(), start_info->nr_pt_frames);
    return table != NULL ? table : page_of_frame(mfn, open_table(0), chunks());
}

/* The entry that maps a page of RAM in the kernel half; its table is there. */
static uint64_t *kernel_entry(const void *kernel_address)
{
    return paging_walk(boot_root(), (uint64_t)kernel_address, 0, false);
}

/* A page can be a table only when nobody can write to it. */
static void make_read_only(const struct space *table)
{
    change(kernel_entry(table), machine_address(table) | KERNEL_BITS);
}

static void make_writable(const struct space *table)
{
    check("to make a page writable", HYPERVISOR_update_va_mapping(
        (uint64_t)table, machine_address(table) | KERNEL_BITS | PTE_W, UVMF_INVLPG));
}

static void fill(struct space *table, uint64_t physical, uint64_t end, uint64_t bits)
{
    for (unsigned i = 0; i < ENTRIES && physical < end; i++, physical += PAGE_SIZE)
        table->entry[i] = machine(physical) | bits;
}

/* All of it is in the 1 GiB of one level-2 table, and the image is there, so the tables above exist. */
bool hal_kernel_open(uint64_t physical, uint64_t size)
{
    if (physical > hal_kernel_reach() || size > hal_kernel_reach() - physical)
        return false;
    for (uint64_t chunk = physical / LARGE_PAGE_SIZE; chunk * LARGE_PAGE_SIZE < physical + size; chunk++) {
        uint64_t *entry = paging_walk(boot_root(), KERNEL_BASE + chunk * LARGE_PAGE_SIZE, 1, false);
        if ((*entry & PTE_P) != 0)
            continue;
        struct space *table = open_table(chunk);
        hal_kernel_open(hal_physical(table), PAGE_SIZE); /* in lower memory: this ends */
        fill(table, chunk * LARGE_PAGE_SIZE, hal_kernel_reach(), KERNEL_BITS | PTE_W);
        make_read_only(table);
        change(entry, machine_address(table) | LINK_BITS);
    }
    commit();
    return true;
}

/* ---- spaces --------------------------------------------------------------------------------------------------------- */

/* A table of zeros that the kernel can still write to. */
static struct space *table_take(void)
{
    if (unused_count > 0) {
        struct space *table = unused[--unused_count];
        make_writable(table);
        memset(table, 0, sizeof *table);
        return table;
    }
    return pool_used < POOL_TABLES ? &pool[pool_used++] : NULL;
}

static void link_table(const uint64_t *entry, const struct space *table)
{
    make_read_only(table);
    change(entry, machine_address(table) | LINK_BITS);
}

struct space *paging_table_make(uint64_t *entry, unsigned level)
{
    struct space *table = table_take();
    if (table == NULL)
        return NULL;
    link_table(entry, table);
    if (level == 3) /* into the user's root too */
        change((uint64_t *)((char *)entry + sizeof(struct space)), machine_address(table) | LINK_BITS);
    return table;
}

struct space *hal_space_create(void)
{
    if (POOL_TABLES - pool_used < 2)
        return NULL;
    struct space *space = &pool[pool_used];
    pool_used += 2;
    space->entry[KERNEL_SLOT] = boot_root()->entry[KERNEL_SLOT];
    struct mmuext_op pins[2];
    for (unsigned i = 0; i < 2; i++) {
        make_read_only(space + i);
        pins[i] = (struct mmuext_op){.cmd = MMUEXT_PIN_L4_TABLE, .arg1.mfn = machine_address(space + i) / PAGE_SIZE};
    }
    commit();
    check("to pin an address space", HYPERVISOR_mmuext_op(pins, 2));
    return space;
}

/* Whether fill() would change nothing but the bits that the processor and Xen add. */
static bool is_filled(const struct space *table, uint64_t physical, uint64_t bits)
{
    for (unsigned i = 0; i < ENTRIES; i++, physical += PAGE_SIZE)
        if (((table->entry[i] ^ (machine(physical) | bits)) & (PHYSICAL_MASK | PTE_P | PTE_W | PTE_NX)) != 0)
            return false;
    return true;
}

static bool map_large(uint64_t *entry, uint64_t physical, uint64_t bits)
{
    struct space *old = (*entry & PTE_P) != 0 ? paging_table(*entry) : NULL;
    if (old != NULL && is_filled(old, physical, bits))
        return true;
    struct space *table = table_take();
    if (table == NULL)
        return false;
    fill(table, physical, physical + LARGE_PAGE_SIZE, bits);
    maps_large[table - pool] = true;
    link_table(entry, table);
    commit();
    if (old != NULL)
        unused[unused_count++] = old;
    return true;
}

bool hal_space_map(struct space *space, uint64_t address, uint64_t physical, uint64_t size, unsigned rights)
{
    bool large = size == LARGE_PAGE_SIZE;
    uint64_t *entry = paging_walk(space, address, large ? 1 : 0, true);
    bool mapped = entry != NULL;
    if (mapped && large)
        mapped = map_large(entry, physical, paging_bits(rights));
    else if (mapped)
        change(entry, machine(physical) | paging_bits(rights));
    commit();
    return mapped;
}

void hal_space_unmap(struct space *space, uint64_t address)
{
    uint64_t *entry = paging_walk(space, address, 1, false);
    if (entry == NULL || (*entry & PTE_P) == 0)
        return;
    struct space *table = paging_table(*entry);
    if (!maps_large[table - pool]) {
        change(&table->entry[(address >> LEVEL_SHIFT(0)) % ENTRIES], 0);
        commit();
        return;
    }
    change(entry, 0);
    commit();
    unused[unused_count++] = table;
}

void hal_page_change(uint64_t *entry, uint64_t address, uint64_t physical, unsigned rights)
{
    (void)entry; /* Xen finds it by the address */
    check("update_va_mapping",
          HYPERVISOR_update_va_mapping(address, machine(physical) | paging_bits(rights), UVMF_INVLPG));
}

/* One hypercall for up to 64: the list, and then the flush. */
void hal_pages_change(const struct page_change *changes, unsigned count, unsigned rights)
{
    static const struct mmuext_op flush = {.cmd = MMUEXT_TLB_FLUSH_LOCAL};
    uint64_t bits = paging_bits(rights);
    while (count > 0) {
        for (queued = 0; queued < ARRAY_SIZE(queue) && count > 0; queued++, changes++, count--)
            queue[queued] = (struct mmu_update){machine_address(changes->entry) | MMU_NORMAL_PT_UPDATE,
                                                machine(changes->physical) | bits};
        struct multicall_entry calls[] = {
            {__HYPERVISOR_mmu_update, 0, {(uint64_t)queue, queued, 0, DOMID_SELF}},
            {__HYPERVISOR_mmuext_op, 0, {(uint64_t)&flush, 1, 0, DOMID_SELF}},
        };
        check("a list of entries", HYPERVISOR_multicall(calls, ARRAY_SIZE(calls)));
        check("an entry of a list", (int64_t)(calls[0].result | calls[1].result));
    }
    queued = 0;
}

/* Both roots in one hypercall; the kernel's own space has no user half. */
void hal_space_switch(struct space *space)
{
    if (space == current)
        return;
    const struct space *root = space != NULL ? space : boot_root();
    struct mmuext_op operations[] = {
        {.cmd = MMUEXT_NEW_BASEPTR, .arg1.mfn = machine_address(root) / PAGE_SIZE},
        {.cmd = MMUEXT_NEW_USER_BASEPTR, .arg1.mfn = space != NULL ? machine_address(space + 1) / PAGE_SIZE : 0},
    };
    check("a switch of address spaces", HYPERVISOR_mmuext_op(operations, ARRAY_SIZE(operations)));
    current = space;
}

uint64_t trap_page_root(void)
{
    return machine_address(current != NULL ? current : boot_root());
}
