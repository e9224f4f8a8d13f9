#include "kernel.h"

static uint64_t next; /* 0 until the first call */

/* The end of the RAM that holds the image, as far as the kernel reaches. */
static uint64_t memory_end(void)
{
    const struct boot_info *info = hal_boot_info();
    for (unsigned i = 0; i < info->range_count; i++) {
        const struct memory_range *range = &info->range[i];
        if (range->base < hal_kernel_end() && hal_kernel_end() - range->base < range->size) {
            uint64_t end = range->base + range->size;
            return end < hal_kernel_reach() ? end : hal_kernel_reach();
        }
    }
    return 0;
}

uint64_t frames_take(uint64_t size)
{
    uint64_t start = (frames_mark() + size - 1) & ~(size - 1);
    uint64_t end = memory_end();
    if (start > end || end - start < size || !hal_kernel_open(start, size))
        return 0;
    next = start + size;
    return start;
}

uint64_t frames_mark(void)
{
    if (next == 0)
        next = hal_kernel_end();
    return next;
}

void frames_release(uint64_t mark)
{
    next = mark;
}
