/* The console: a 16550A at 0x3f8, IRQ 4 (National Semiconductor PC16550D, June 1995; names are the data sheet's). */
#include "hal.h"
#include "instructions.h"

enum uart {
    RBR = 0x3f8, THR = 0x3f8, /* receive, transmit */
    IER = 0x3f9,              /* interrupt enable */
    IIR = 0x3fa, FCR = 0x3fa, /* interrupt identification, FIFO control */
    LCR = 0x3fb,              /* line control */
    MCR = 0x3fc,              /* modem control */
    LSR = 0x3fd,              /* line status */
};
#define IER_RECEIVED 0x01
#define IIR_NONE_PENDING 0x01
#define FCR_ENABLE 0x01
#define LCR_8N1 0x03
#define MCR_OUT2 0x08 /* gates the interrupt on a PC */
#define MCR_READY 0x03
#define LSR_DATA 0x01
#define LSR_THR_EMPTY 0x20
#define FIFO_SIZE 16
#define UART_IRQ 4

/* Bytes received and not yet read: one producer (the interrupt), one consumer; full means the newest is dropped. */
static volatile uint8_t received[1024];
static volatile unsigned received_head, received_tail;

void hal_console_start(void)
{
    out8(FCR, FCR_ENABLE);
    out8(LCR, LCR_8N1);
}

/* Cost: two exits for each 16 bytes; the transmitter is looked at once for a whole FIFO, not once a byte. */
void hal_console_write(const char *text, size_t length)
{
    while (length > 0) {
        size_t part = length < FIFO_SIZE ? length : FIFO_SIZE;
        while ((in8(LSR) & LSR_THR_EMPTY) == 0)
            ;
        out8_string(THR, text, part);
        text += part;
        length -= part;
    }
}

static void uart_interrupt(void *context)
{
    (void)context;
    /* The line is edge triggered: it must fall, that is no cause may be left, before it can rise again. */
    while ((in8(IIR) & IIR_NONE_PENDING) == 0) {
        while (in8(LSR) & LSR_DATA) {
            uint8_t byte = in8(RBR);
            if (received_head - received_tail < sizeof received)
                received[received_head++ % sizeof received] = byte;
        }
    }
}

void hal_console_listen(void)
{
    hal_irq_handle(UART_IRQ, uart_interrupt, NULL);
    out8(MCR, MCR_READY | MCR_OUT2);
    out8(IER, IER_RECEIVED);
    uart_interrupt(NULL); /* what came before anyone listened */
}

int hal_console_read(void)
{
    if (received_head == received_tail)
        return -1;
    return received[received_tail++ % sizeof received];
}
