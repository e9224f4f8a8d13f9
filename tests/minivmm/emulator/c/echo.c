// Sends back what it receives, until the end of the line. Sleeps in between.
#include "board.h"

static volatile int done;

__attribute__((interrupt, aligned(4))) static void handler(void) {
    uint32_t irq = plic_claim();
    while (UART[5] & 1) {
        char c = UART[0];
        put(c);
        if (c == '\n') done = 1;
    }
    plic_complete(irq);
}

int main(void) {
    UART[1] = 1;  // IER: received data
    plic_enable(10);
    interrupts_to(handler, MIE_MEIE);
    print("ready\n");
    WAIT_UNTIL(done)
    return plic_claim() ? 2 : 0;
}
