#include "paging.h"

void *hal_kernel_address(uint64_t physical)
{
    return physical < hal_kernel_reach() ? (void *)(KERNEL_BASE + physical) : NULL;
}

uint64_t hal_physical(const void *kernel_address)
{
    return (uint64_t)kernel_address - KERNEL_BASE;
}

uint64_t *paging_walk(struct space *space, uint64_t address, unsigned leaf, bool make)
{
    struct space *table = space;
    for (unsigned level = 3;; level--) {
        uint64_t *entry = &table->entry[(address >> LEVEL_SHIFT(level)) % ENTRIES];
        if (level == leaf)
            return entry;
        if ((*entry & PTE_PS) != 0)
            return NULL;
        if ((*entry & PTE_P) != 0)
            table = paging_table(*entry);
        else
            table = make ? paging_table_make(entry, level) : NULL;
        if (table == NULL)
            return NULL;
    }
}

uint64_t paging_bits(unsigned rights)
{
    return PTE_P | (rights & PAGE_WRITE ? PTE_W : 0) | (rights & PAGE_USER ? PTE_U : 0) |
           (rights & PAGE_EXECUTE ? 0 : PTE_NX);
}

uint64_t *hal_space_entry(struct space *space, uint64_t address)
{
    uint64_t *entry = paging_walk(space, address, 0, false);
    return entry != NULL && (*entry & PTE_P) != 0 ? entry : NULL;
}
