#include "kernel.h"

unsigned kernel_boot_protocol;
uint64_t kernel_boot_argument;

_Noreturn void kernel_start(unsigned protocol, uint64_t argument)
{
    kernel_boot_protocol = protocol;
    kernel_boot_argument = argument;
    hal_console_start();
    hal_exit((unsigned)guest_main());
}
