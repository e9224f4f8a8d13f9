/* The console: a 16550A whose registers are bytes of memory (names are the data sheet's, as in hal/x86_64/serial.c). */
#include "hal.h"
#include "machine.h"

enum uart { RBR = 0, THR = 0, IER = 1, IIR = 2, FCR = 2, LCR = 3, LSR = 5 };
#define IER_RECEIVED 0x01
#define IIR_NONE_PENDING 0x01
#define FCR_ENABLE 0x01
#define LCR_8N1 0x03
#define LSR_DATA 0x01
#define LSR_THR_EMPTY 0x20
#define FIFO_SIZE 16

static volatile uint8_t *const uart = (volatile uint8_t *)(DEVICE_BASE + UART);

/* Bytes received and not yet read: one producer (the interrupt), one consumer; full means the newest is dropped. */
static volatile uint8_t received[1024];
static volatile unsigned received_head, received_tail;

void hal_console_start(void)
{
    uart[FCR] = FCR_ENABLE;
    uart[LCR] = LCR_8N1;
}

void hal_console_write(const char *text, size_t length)
{
    while (length > 0) {
        size_t part = length < FIFO_SIZE ? length : FIFO_SIZE;
        while ((uart[LSR] & LSR_THR_EMPTY) == 0)
            ;
        for (size_t i = 0; i < part; i++)
            uart[THR] = (uint8_t)text[i];
        text += part;
        length -= part;
    }
}

static void uart_interrupt(void *context)
{
    (void)context;
    while ((uart[IIR] & IIR_NONE_PENDING) == 0) {
        while (uart[LSR] & LSR_DATA) {
            uint8_t byte = uart[RBR];
            if (received_head - received_tail < sizeof received)
                received[received_head++ % sizeof received] = byte;
        }
    }
}

void hal_console_listen(void)
{
    hal_irq_handle(UART_LINE, uart_interrupt, NULL);
    uart[IER] = IER_RECEIVED;
    uart_interrupt(NULL); /* what came before anyone listened */
}

int hal_console_read(void)
{
    if (received_head == received_tail)
        return -1;
    return received[received_tail++ % sizeof received];
}
