/* The entropy device (virtio 1.2, 5.4): fills what it is offered. */
#include "kernel.h"
#include "virtio.h"

static struct virtio_device device;
static struct virtq requestq;

uint32_t virtio_rng_read(void *buffer, uint32_t length)
{
    static bool started, works;
    if (!started) {
        started = true;
        works = virtio_start(&device, VIRTIO_RNG, VIRTIO_F_EVENT_IDX) && virtq_start(&requestq, &device, 0);
        if (works)
            virtio_ready(&device);
    }
    if (!works)
        return 0;
    virtq_describe(&requestq, 0, buffer, length, VIRTQ_DESC_F_WRITE);
    virtq_offer(&requestq, 0);
    uint32_t given = virtq_wait(&requestq);
    return given < length ? given : length;
}
