/* The console device (virtio 1.2, 5.3): port 0, its receiveq and transmitq. */
#include "kernel.h"
#include "virtio.h"

enum { RECEIVEQ, TRANSMITQ };

static struct virtio_device device;
static struct virtq receiveq, transmitq;
static char received[256];

static void offer_receive_buffer(void)
{
    virtq_describe(&receiveq, 0, received, sizeof received, VIRTQ_DESC_F_WRITE);
    virtq_offer(&receiveq, 0);
}

bool virtio_console_start(void)
{
    if (!virtio_start(&device, VIRTIO_CONSOLE, VIRTIO_F_EVENT_IDX) || !virtq_start(&receiveq, &device, RECEIVEQ) ||
        !virtq_start(&transmitq, &device, TRANSMITQ))
        return false;
    virtio_ready(&device);
    offer_receive_buffer();
    return true;
}

void virtio_console_write(const char *text, uint32_t length)
{
    virtq_describe(&transmitq, 0, text, length, 0);
    virtq_offer(&transmitq, 0);
    virtq_wait(&transmitq);
}

uint32_t virtio_console_read(char *text, uint32_t size)
{
    uint32_t length = virtq_wait(&receiveq);
    length = length < size ? length : size;
    memcpy(text, received, length < sizeof received ? length : sizeof received);
    offer_receive_buffer();
    return length;
}
