/* Starts every processor and prints how many came; `cpus=N` waits for so many. */
#include "kernel.h"

#define HERTZ 100
#define QUIET_TICKS 20     /* with no `cpus=`: nobody came for this long */
#define DEADLINE_TICKS 500 /* with it: give up */

int guest_main(void)
{
    uint64_t wanted = command_line_number("cpus", 0);
    hal_timer_start(HERTZ);
    hal_cpus_start();
    uint64_t start = hal_ticks(), last = start;
    unsigned seen = hal_cpus();
    for (;;) {
        uint64_t now = hal_ticks();
        if (hal_cpus() != seen) {
            seen = hal_cpus();
            last = now;
        }
        if (wanted != 0 ? seen >= wanted || now - start > DEADLINE_TICKS : now - last > QUIET_TICKS)
            break;
        hal_wait();
    }
    print("{\"cpus\":%u}\n", seen);
    return wanted == 0 || seen == wanted ? 0 : 1;
}
