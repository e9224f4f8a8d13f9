// Sleeps three times for a millisecond, woken by the timer.
#include "board.h"

static volatile int ticks;

__attribute__((interrupt, aligned(4))) static void handler(void) {
    ticks++;
    *MTIMECMP = *MTIME + 10000;
}

int main(void) {
    uint64_t start = *MTIME;
    *MTIMECMP = start + 10000;
    interrupts_to(handler, MIE_MTIE);
    WAIT_UNTIL(ticks >= 3)
    print("ticks\n");
    return *MTIME - start >= 30000 ? 0 : 1;
}
