/* Stops the processor with interrupts disabled: nothing can wake it. */
#include "kernel.h"

int guest_main(void)
{
    print("halting\n");
    hal_halt();
}
