/* Says hello with its first instruction that can, then what it found. */
#include "kernel.h"

int guest_main(void)
{
    static const char greeting[] = "Hello from vtk, a tiny kernel in a virtual machine.\n";
    hal_console_write(greeting, sizeof greeting - 1);

    const struct boot_info *info = hal_boot_info();
    print("boot protocol: %s\n", info->protocol);
    print("memory: %lu KiB in %u ranges\n", info->memory_bytes >> 10, info->range_count);
    print("command line: %s\n", info->command_line);
    return 0;
}
