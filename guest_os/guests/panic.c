/* Reads where nothing is mapped: the kernel panics, prints its registers, and the machine ends as crashed. */
#include "kernel.h"

#define NOWHERE 0x7ead00000000

int guest_main(void)
{
    print("About to read %lx, where nothing is mapped.\n", NOWHERE);
    return (int)*(volatile const uint8_t *)NOWHERE;
}
