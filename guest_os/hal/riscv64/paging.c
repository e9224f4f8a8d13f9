/* Address spaces: Sv39 (Privileged 4.4), tables taken from a pool in bss, which the loader cleared. */
#include "hal.h"
#include "machine.h"
#include "riscv.h"

#define PTE_V 0x1
#define PTE_R 0x2
#define PTE_W 0x4
#define PTE_X 0x8
#define PTE_U 0x10
#define PTE_A 0x40
#define PTE_D 0x80
#define PTE_LEAF (PTE_R | PTE_W | PTE_X)
#define ENTRIES 512
#define LEVEL_SHIFT(level) (12 + 9 * (level)) /* level 2 = root */
#define KERNEL_SLOT 510                       /* and the one after it */

struct space { /* a table of any level; an address space is its root */
    uint64_t entry[ENTRIES];
};

#define POOL_TABLES 32
static struct space pool[POOL_TABLES] __attribute__((aligned(4096)));
static unsigned pool_used;
extern struct space boot_root;
extern char image_end[];

void *hal_kernel_address(uint64_t physical)
{
    return physical >= RAM_PHYSICAL && physical < KERNEL_REACH ? (void *)(physical + WINDOW_OFFSET) : NULL;
}

uint64_t hal_physical(const void *kernel_address)
{
    return (uint64_t)kernel_address - WINDOW_OFFSET;
}

uint64_t hal_kernel_end(void)
{
    return hal_physical(image_end);
}

uint64_t hal_kernel_reach(void)
{
    return KERNEL_REACH;
}

/* The boot table maps all of it. */
bool hal_kernel_open(uint64_t physical, uint64_t size)
{
    return physical <= KERNEL_REACH && size <= KERNEL_REACH - physical;
}

/* Tables and pages of 4 KiB and more alike: the page number is bits 10 and up (4.3.1). */
static uint64_t entry_of(uint64_t physical, uint64_t bits)
{
    return physical >> 12 << 10 | bits;
}

static uint64_t paging_bits(unsigned rights)
{
    return PTE_V | PTE_R | PTE_A | PTE_D | (rights & PAGE_WRITE ? PTE_W : 0) | (rights & PAGE_USER ? PTE_U : 0) |
           (rights & PAGE_EXECUTE ? PTE_X : 0);
}

static struct space *table_take(void)
{
    return pool_used < POOL_TABLES ? &pool[pool_used++] : NULL;
}

/* The entry that translates `address` at level `leaf`, making the tables above it when `make`; NULL when out of tables
 * or when a large page is in the way. */
static uint64_t *walk(struct space *space, uint64_t address, unsigned leaf, bool make)
{
    for (unsigned level = 2;; level--) {
        uint64_t *entry = &space->entry[(address >> LEVEL_SHIFT(level)) % ENTRIES];
        if (level == leaf)
            return entry;
        if ((*entry & PTE_V) == 0) {
            struct space *table = make ? table_take() : NULL;
            if (table == NULL)
                return NULL;
            *entry = entry_of(hal_physical(table), PTE_V);
        }
        if ((*entry & PTE_LEAF) != 0)
            return NULL;
        space = hal_kernel_address(*entry >> 10 << 12);
    }
}

static inline void flush_page(uint64_t address)
{
    __asm__ volatile("sfence.vma %0, zero" : : "r"(address) : "memory");
}

static inline void flush_all(void)
{
    __asm__ volatile("sfence.vma" : : : "memory");
}

struct space *hal_space_create(void)
{
    struct space *space = table_take();
    if (space == NULL)
        return NULL;
    space->entry[KERNEL_SLOT] = boot_root.entry[KERNEL_SLOT];
    space->entry[KERNEL_SLOT + 1] = boot_root.entry[KERNEL_SLOT + 1];
    return space;
}

bool hal_space_map(struct space *space, uint64_t address, uint64_t physical, uint64_t size, unsigned rights)
{
    uint64_t *entry = walk(space, address, size == LARGE_PAGE_SIZE ? 1 : 0, true);
    if (entry == NULL)
        return false;
    *entry = entry_of(physical, paging_bits(rights));
    flush_page(address); /* a hart may remember that nothing was there (4.2.1) */
    return true;
}

void hal_space_unmap(struct space *space, uint64_t address)
{
    uint64_t *entry = walk(space, address, 1, false);
    if (entry != NULL && (*entry & PTE_LEAF) == 0)
        entry = walk(space, address, 0, false);
    if (entry != NULL)
        *entry = 0;
    flush_page(address);
}

uint64_t *hal_space_entry(struct space *space, uint64_t address)
{
    uint64_t *entry = walk(space, address, 0, false);
    return entry != NULL && (*entry & PTE_V) != 0 ? entry : NULL;
}

void hal_page_change(uint64_t *entry, uint64_t address, uint64_t physical, unsigned rights)
{
    *(volatile uint64_t *)entry = entry_of(physical, paging_bits(rights));
    flush_page(address);
}

void hal_pages_change(const struct page_change *changes, unsigned count, unsigned rights)
{
    uint64_t bits = paging_bits(rights);
    for (const struct page_change *change = changes; change < changes + count; change++)
        *(volatile uint64_t *)change->entry = entry_of(change->physical, bits);
    flush_all(); /* one for them all: address spaces have no numbers here that would keep others' translations */
}

/* Without address-space identifiers a new root makes every old translation wrong. */
void hal_space_switch(struct space *space)
{
    write_csr(satp, SATP_SV39 | hal_physical(space != NULL ? space : &boot_root) >> 12);
    flush_all();
}
