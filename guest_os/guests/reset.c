/* Resets the machine through the keyboard controller. */
#include "kernel.h"

int guest_main(void)
{
    print("resetting\n");
    hal_reset();
}
