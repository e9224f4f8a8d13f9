/* Address spaces: tables taken from a pool in bss, which the loader cleared. */
#include "paging.h"
#include "instructions.h"
#include "kernel.h"
#include "machine.h"
#include "registers.h"
#include "user.h"

#define POOL_TABLES 32
static struct space pool[POOL_TABLES] __attribute__((aligned(4096)));
static unsigned pool_used;
extern struct space boot_pml4;
extern char image_end[];

uint64_t hal_kernel_end(void)
{
    return hal_physical(image_end);
}

uint64_t hal_kernel_reach(void)
{
    return KERNEL_REACH;
}

/* The boot tables map all of it. */
bool hal_kernel_open(uint64_t physical, uint64_t size)
{
    return physical <= KERNEL_REACH && size <= KERNEL_REACH - physical;
}

static struct space *table_take(void)
{
    return pool_used < POOL_TABLES ? &pool[pool_used++] : NULL;
}

struct space *paging_table(uint64_t entry)
{
    return hal_kernel_address(entry & PHYSICAL_MASK);
}

/* Tables allow everything: the leaf decides. */
struct space *paging_table_make(uint64_t *entry, unsigned level)
{
    (void)level;
    struct space *table = table_take();
    if (table != NULL)
        *entry = hal_physical(table) | PTE_P | PTE_W | PTE_U;
    return table;
}

struct space *hal_space_create(void)
{
    struct space *space = table_take();
    if (space == NULL)
        return NULL;
    space->entry[KERNEL_SLOT] = boot_pml4.entry[KERNEL_SLOT];
    return hal_gate_map(space) ? space : NULL;
}

bool hal_space_map(struct space *space, uint64_t address, uint64_t physical, uint64_t size, unsigned rights)
{
    hal_no_execute_enable();
    bool large = size == LARGE_PAGE_SIZE;
    uint64_t *entry = paging_walk(space, address, large ? 1 : 0, true);
    if (entry == NULL)
        return false;
    *entry = physical | paging_bits(rights) | (large ? PTE_PS : 0);
    return true;
}

void hal_space_unmap(struct space *space, uint64_t address)
{
    uint64_t *entry = paging_walk(space, address, 1, false);
    if (entry != NULL && (*entry & PTE_PS) == 0)
        entry = paging_walk(space, address, 0, false);
    if (entry != NULL)
        *entry = 0;
}

static inline void flush_page(uint64_t address)
{
    __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

void hal_page_change(uint64_t *entry, uint64_t address, uint64_t physical, unsigned rights)
{
    *(volatile uint64_t *)entry = physical | paging_bits(rights);
    flush_page(address);
}

void hal_pages_change(const struct page_change *changes, unsigned count, unsigned rights)
{
    uint64_t bits = paging_bits(rights);
    for (const struct page_change *change = changes; change < changes + count; change++) {
        *(volatile uint64_t *)change->entry = change->physical | bits;
        flush_page(change->address);
    }
}

void hal_space_switch(struct space *space)
{
    write_cr3(hal_physical(space != NULL ? space : &boot_pml4));
}

uint64_t trap_fault_address(void)
{
    return read_cr2();
}

uint64_t trap_page_root(void)
{
    return read_cr3();
}
