/* Ends with the exit code the command line gives: `code=N`, 0 to 127. */
#include "kernel.h"

int guest_main(void)
{
    return (int)command_line_number("code", 0);
}
