/* Writes to the console without end. */
#include "kernel.h"

int guest_main(void)
{
    static const char line[] = "flood 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTU\n";
    for (;;)
        hal_console_write(line, sizeof line - 1);
}
