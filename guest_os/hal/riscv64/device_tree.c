/* What the loader told: the flattened device tree (Devicetree Specification 0.4, chapter 5) at the boot argument. Memory,
 * the command line and the clock's rate are read, and each virtio-mmio transport is put on the command line in Linux's
 * words, where the drivers look for it. */
#include "kernel.h"
#include "machine.h"
#include "riscv.h"

#define FDT_MAGIC 0xd00dfeed
#define FDT_BEGIN_NODE 1
#define FDT_END_NODE 2
#define FDT_PROP 3
#define FDT_NOP 4
#define FDT_DEPTH_MAX 8
#define FDT_SIZE_MAX (1u << 20)
#define COMMAND_LINE_MAX 4096
#define DEFAULT_TIMEBASE 10000000

struct fdt_header { /* 5.2; every field is big-endian */
    uint32_t magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version, boot_cpuid_phys,
        size_dt_strings, size_dt_struct;
};

/* What is gathered of a node until it ends. Numbers of addresses and of sizes have two cells each on this board. */
struct node {
    const char *name;
    bool is_virtio;
    uint64_t base, size;
    uint32_t interrupt;
};

static struct boot_info info;
static char command_line[COMMAND_LINE_MAX];
static char devices[1024];
static size_t devices_length;
static uint64_t timebase = DEFAULT_TIMEBASE;

static uint32_t big32(const void *at)
{
    return __builtin_bswap32(*(const uint32_t *)at);
}

static uint64_t big64(const void *at)
{
    return (uint64_t)big32(at) << 32 | big32((const uint8_t *)at + 4);
}

static bool starts_with(const char *text, const char *start)
{
    while (*start != '\0')
        if (*text++ != *start++)
            return false;
    return true;
}

static void read_property(struct node *node, const char *name, const uint8_t *value, uint32_t length)
{
    if (text_equal(name, "reg") && length >= 16) {
        node->base = big64(value);
        node->size = big64(value + 8);
    } else if (text_equal(name, "compatible") && length > 0 && value[length - 1] == '\0') {
        node->is_virtio = text_equal((const char *)value, "virtio,mmio");
    } else if (text_equal(name, "interrupts") && length >= 4) {
        node->interrupt = big32(value);
    } else if (text_equal(name, "timebase-frequency") && length == 4 && big32(value) != 0) {
        timebase = big32(value);
    } else if (text_equal(name, "bootargs") && text_equal(node->name, "chosen") && length > 0 && value[length - 1] == '\0') {
        write_text(command_line, sizeof command_line, "%s", (const char *)value);
    }
}

static void end_node(const struct node *node)
{
    if (starts_with(node->name, "memory@") && info.range_count < ARRAY_SIZE(info.range)) {
        info.range[info.range_count++] = (struct memory_range){node->base, node->size};
        info.memory_bytes += node->size;
    } else if (node->is_virtio) {
        devices_length += write_text(devices + devices_length, sizeof devices - devices_length,
                                     " virtio_mmio.device=0x%lx@0x%lx:%u", node->size, node->base, node->interrupt);
    }
}

/* Every offset is checked against the end: the tree is the loader's, and may be anything. */
static void read_structure(const uint8_t *at, const uint8_t *end, const char *strings, uint32_t strings_size)
{
    struct node node[FDT_DEPTH_MAX] = {0};
    unsigned depth = 0;
    while (end - at >= 4) {
        uint32_t token = big32(at);
        at += 4;
        if (token == FDT_BEGIN_NODE) {
            const char *name = (const char *)at;
            while (at < end && *at != '\0')
                at++;
            if (at == end || depth == FDT_DEPTH_MAX)
                return;
            node[depth++] = (struct node){.name = name};
            at += 4 - (at - (const uint8_t *)name) % 4; /* past the NUL, to a word */
        } else if (token == FDT_END_NODE && depth > 0) {
            end_node(&node[--depth]);
        } else if (token == FDT_PROP && end - at >= 8 && depth > 0) {
            uint32_t length = big32(at), name = big32(at + 4);
            at += 8;
            if (length > (uint64_t)(end - at) || name >= strings_size)
                return;
            read_property(&node[depth - 1], strings + name, at, length);
            at += (length + 3) & ~3u;
        } else if (token != FDT_NOP) {
            return; /* FDT_END, or no token */
        }
    }
}

static void read_tree(const uint8_t *tree)
{
    const struct fdt_header *header = (const struct fdt_header *)tree;
    if (tree == NULL || big32(&header->magic) != FDT_MAGIC)
        return;
    uint32_t size = big32(&header->totalsize), structure = big32(&header->off_dt_struct);
    uint32_t strings = big32(&header->off_dt_strings), strings_size = big32(&header->size_dt_strings);
    if (size > FDT_SIZE_MAX || hal_kernel_address(hal_physical(tree) + size) == NULL || structure >= size ||
        structure % 4 != 0 || strings >= size || strings_size > size - strings || strings_size == 0 ||
        tree[strings + strings_size - 1] != '\0')
        return;
    read_structure(tree + structure, tree + size, (const char *)tree + strings, strings_size);
}

const struct boot_info *hal_boot_info(void)
{
    if (info.protocol == NULL) {
        info.protocol = "devicetree";
        info.command_line = command_line;
        read_tree(hal_kernel_address(kernel_boot_argument));
        size_t length = text_length(command_line);
        write_text(command_line + length, sizeof command_line - length, "%s", devices);
    }
    return &info;
}

uint64_t device_tree_timebase(void)
{
    hal_boot_info();
    return timebase;
}
