/* Faults with no way to handle it: the processor shuts down. */
#include "kernel.h"

int guest_main(void)
{
    print("shutting down by a triple fault\n");
    hal_triple_fault();
}
