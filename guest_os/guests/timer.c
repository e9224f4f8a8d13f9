/* Counts timer ticks: `ticks=N` of them (10), at 100 a second. */
#include "kernel.h"

int guest_main(void)
{
    uint64_t wanted = command_line_number("ticks", 10);
    hal_timer_start(100);
    while (hal_ticks() < wanted)
        hal_wait();
    hal_timer_stop();
    print("{\"ticks\":%lu}\n", wanted);
    return 0;
}
