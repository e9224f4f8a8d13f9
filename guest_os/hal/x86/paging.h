/* Four levels of page tables (SDM 4.5): what both layers do alike, and what each does its own way. */
#pragma once
#include "hal.h"
#include "x86.h"

#define ENTRIES 512
#define PHYSICAL_MASK 0x000ffffffffff000ull
#define LEVEL_SHIFT(level) (12 + 9 * (level)) /* level 0 = page table, 3 = PML4 */
#define KERNEL_SLOT 511

struct space { /* a table of any level; an address space is its PML4 */
    uint64_t entry[ENTRIES];
};

/* The entry that translates `address` at level `leaf`, making the tables above it when `make`; NULL when out of tables
 * or when a large page is in the way. */
uint64_t *paging_walk(struct space *space, uint64_t address, unsigned leaf, bool make);
/* The bits of an entry with these rights. */
uint64_t paging_bits(unsigned rights);

/* The layer's: the table a present entry leads to; and a new table below an entry of `level`, NULL when there is none. */
struct space *paging_table(uint64_t entry);
struct space *paging_table_make(uint64_t *entry, unsigned level);
