/* Address spaces: four levels of tables (SDM 4.5), taken from a pool in bss, which the loader cleared. */
#include "instructions.h"
#include "kernel.h"
#include "user.h"
#include "x86.h"

#define ENTRIES 512
#define PHYSICAL_MASK 0x000ffffffffff000ull
#define LEVEL_SHIFT(level) (12 + 9 * (level)) /* level 0 = page table, 3 = PML4 */
#define KERNEL_SLOT 511

struct space {
    uint64_t entry[ENTRIES];
};

#define POOL_TABLES 32
static struct space pool[POOL_TABLES] __attribute__((aligned(4096)));
static unsigned pool_used;
extern struct space boot_pml4;
extern char image_end[];

void *hal_kernel_address(uint64_t physical)
{
    return physical < KERNEL_REACH ? (void *)(KERNEL_BASE + physical) : NULL;
}

uint64_t hal_physical(const void *kernel_address)
{
    return (uint64_t)kernel_address - KERNEL_BASE;
}

uint64_t hal_kernel_end(void)
{
    return hal_physical(image_end);
}

uint64_t hal_kernel_reach(void)
{
    return KERNEL_REACH;
}

static struct space *table_take(void)
{
    return pool_used < POOL_TABLES ? &pool[pool_used++] : NULL;
}

struct space *hal_space_create(void)
{
    struct space *space = table_take();
    if (space == NULL)
        return NULL;
    space->entry[KERNEL_SLOT] = boot_pml4.entry[KERNEL_SLOT];
    return hal_gate_map(space) ? space : NULL;
}

/* The entry that translates `address` at `level`, making the tables above it; NULL when out of tables or when a large
 * page is in the way. Tables allow everything: the leaf decides. */
static uint64_t *walk(struct space *space, uint64_t address, unsigned leaf, bool make)
{
    struct space *table = space;
    for (unsigned level = 3;; level--) {
        uint64_t *entry = &table->entry[(address >> LEVEL_SHIFT(level)) % ENTRIES];
        if (level == leaf)
            return entry;
        if ((*entry & PTE_PS) != 0)
            return NULL;
        if ((*entry & PTE_P) == 0) {
            struct space *below = make ? table_take() : NULL;
            if (below == NULL)
                return NULL;
            *entry = hal_physical(below) | PTE_P | PTE_W | PTE_U;
        }
        table = hal_kernel_address(*entry & PHYSICAL_MASK);
    }
}

static uint64_t bits(unsigned rights)
{
    return PTE_P | (rights & PAGE_WRITE ? PTE_W : 0) | (rights & PAGE_USER ? PTE_U : 0) |
           (rights & PAGE_EXECUTE ? 0 : PTE_NX);
}

bool hal_space_map(struct space *space, uint64_t address, uint64_t physical, uint64_t size, unsigned rights)
{
    hal_no_execute_enable();
    bool large = size == LARGE_PAGE_SIZE;
    uint64_t *entry = walk(space, address, large ? 1 : 0, true);
    if (entry == NULL)
        return false;
    *entry = physical | bits(rights) | (large ? PTE_PS : 0);
    return true;
}

void hal_space_unmap(struct space *space, uint64_t address)
{
    uint64_t *entry = walk(space, address, 1, false);
    if (entry != NULL && (*entry & PTE_PS) == 0)
        entry = walk(space, address, 0, false);
    if (entry != NULL)
        *entry = 0;
}

uint64_t *hal_space_entry(struct space *space, uint64_t address)
{
    uint64_t *entry = walk(space, address, 0, false);
    return entry != NULL && (*entry & PTE_P) != 0 ? entry : NULL;
}

void hal_entry_set(uint64_t *entry, uint64_t physical, unsigned rights)
{
    *(volatile uint64_t *)entry = physical | bits(rights);
}

void hal_flush_page(uint64_t address)
{
    __asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

void hal_space_switch(struct space *space)
{
    write_cr3(hal_physical(space != NULL ? space : &boot_pml4));
}
