/* Writes and reads where the machine has no memory: `at=ADDRESS`, physical, below 1 GiB. */
#include "kernel.h"

int guest_main(void)
{
    uint64_t physical = command_line_number("at", 0x3ffff000);
    volatile uint64_t *word = hal_kernel_address(physical & ~7ull);
    if (word == NULL)
        panic("at=%lx is beyond what the kernel maps", physical);
    print("writing to %lx\n", physical);
    *word = 0x76746b;
    print("{\"read\":\"%lx\"}\n", *word);
    return 0;
}
