/* Loops for ever in the kernel, or with `user=1` on the command line in a program; never touches the machine again. */
#include "kernel.h"

int guest_main(void)
{
    print("spinning\n");
    if (command_line_number("user", 0) != 0)
        program_run("spin", UINT64_MAX);
    for (;;)
        ;
}
