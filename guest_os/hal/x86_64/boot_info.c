/* What the loader told, in either of its two forms. */
#include "hal.h"
#include "kernel.h"
#include "machine.h"

/* struct hvm_start_info and hvm_memmap_table_entry (xen/include/public/arch-x86/hvm/start_info.h) */
#define START_INFO_MAGIC 0x336ec578
struct start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr;
    uint64_t memmap_paddr; /* version 1 and later */
    uint32_t memmap_entries, reserved;
};
struct memmap_entry {
    uint64_t addr, size;
    uint32_t type, reserved;
};

/* struct boot_params, "zero page" (Documentation/arch/x86/zero-page.rst): offsets of what is read here */
#define ZERO_PAGE_E820_ENTRIES 0x1e8
#define ZERO_PAGE_CMD_LINE_PTR 0x228
#define ZERO_PAGE_E820_TABLE 0x2d0
#define ZERO_PAGE_E820_MAX 128
struct e820_entry {
    uint64_t addr, size;
    uint32_t type;
} __attribute__((packed));

#define MEMORY_USABLE 1 /* both tables */
#define COMMAND_LINE_MAX 4096

static struct boot_info info;
static char empty[1];

static void add_range(uint64_t base, uint64_t size, uint32_t type)
{
    if (type != MEMORY_USABLE || info.range_count == sizeof info.range / sizeof info.range[0])
        return;
    info.range[info.range_count++] = (struct memory_range){base, size};
    info.memory_bytes += size;
}

/* The loader's word is checked: a command line that does not end, or is out of reach, is taken as empty. */
static const char *command_line_at(uint64_t physical)
{
    const char *text = physical != 0 ? hal_kernel_address(physical) : NULL;
    if (text == NULL || hal_kernel_address(physical + COMMAND_LINE_MAX) == NULL)
        return empty;
    for (unsigned i = 0; i < COMMAND_LINE_MAX; i++)
        if (text[i] == '\0')
            return text;
    return empty;
}

static void read_start_info(const struct start_info *start)
{
    info.protocol = "pvh";
    if (start == NULL || start->magic != START_INFO_MAGIC)
        return;
    info.command_line = command_line_at(start->cmdline_paddr);
    const struct memmap_entry *map = start->version >= 1 ? hal_kernel_address(start->memmap_paddr) : NULL;
    for (unsigned i = 0; map != NULL && i < start->memmap_entries && i < ZERO_PAGE_E820_MAX; i++)
        add_range(map[i].addr, map[i].size, map[i].type);
}

static void read_zero_page(const uint8_t *zero_page)
{
    info.protocol = "linux64";
    if (zero_page == NULL)
        return;
    info.command_line = command_line_at(*(const uint32_t *)(zero_page + ZERO_PAGE_CMD_LINE_PTR));
    const struct e820_entry *map = (const struct e820_entry *)(zero_page + ZERO_PAGE_E820_TABLE);
    for (unsigned i = 0; i < zero_page[ZERO_PAGE_E820_ENTRIES] && i < ZERO_PAGE_E820_MAX; i++)
        add_range(map[i].addr, map[i].size, map[i].type);
}

const struct boot_info *hal_boot_info(void)
{
    if (info.protocol == NULL) {
        info.command_line = empty;
        if (kernel_boot_protocol == BOOT_PVH)
            read_start_info(hal_kernel_address(kernel_boot_argument));
        else
            read_zero_page(hal_kernel_address(kernel_boot_argument));
    }
    return &info;
}
