/* The block device (virtio 1.2, 5.2): one request at a time, data straight to and from the caller's memory. */
#include "kernel.h"
#include "virtio.h"

#define VIRTIO_BLK_F_RO (1ull << 5)
#define VIRTIO_BLK_F_FLUSH (1ull << 9)
#define SECTOR 512

enum request_type { VIRTIO_BLK_T_IN = 0, VIRTIO_BLK_T_OUT = 1, VIRTIO_BLK_T_FLUSH = 4 };
#define VIRTIO_BLK_S_OK 0
#define STATUS_UNSET 0xff

struct virtio_blk {
    struct virtio_device device;
    struct virtq requestq;
    struct { /* struct virtio_blk_req (5.2.6), without its data */
        uint32_t type;
        uint32_t reserved;
        uint64_t sector;
    } header;
    volatile uint8_t status;
    uint64_t size;
};

enum { HEADER, STATUS_WITHOUT_DATA, DATA, STATUS }; /* descriptors; HEADER is followed by DATA or by no data */

static struct virtio_blk disk;
static enum { UNTRIED, WORKS, ABSENT } state;

struct virtio_blk *virtio_blk_disk(void)
{
    if (state == UNTRIED) {
        state = ABSENT;
        if (virtio_start(&disk.device, VIRTIO_BLK, VIRTIO_F_EVENT_IDX | VIRTIO_BLK_F_RO | VIRTIO_BLK_F_FLUSH) &&
            virtq_start(&disk.requestq, &disk.device, 0)) {
            volatile uint32_t *capacity = virtio_config(&disk.device);
            disk.size = ((uint64_t)capacity[1] << 32 | capacity[0]) * SECTOR;
            virtq_describe(&disk.requestq, HEADER, &disk.header, sizeof disk.header, VIRTQ_DESC_F_NEXT);
            virtq_describe(&disk.requestq, STATUS, &disk.status, 1, VIRTQ_DESC_F_WRITE);
            virtq_describe(&disk.requestq, STATUS_WITHOUT_DATA, &disk.status, 1, VIRTQ_DESC_F_WRITE);
            virtio_ready(&disk.device);
            state = WORKS;
        }
    }
    return state == WORKS ? &disk : NULL;
}

uint64_t virtio_blk_size(const struct virtio_blk *blk)
{
    return blk->size;
}

bool virtio_blk_read_only(const struct virtio_blk *blk)
{
    return (blk->device.features & VIRTIO_BLK_F_RO) != 0;
}

static bool request(struct virtio_blk *blk, enum request_type type, uint64_t offset, const void *data, uint32_t length)
{
    blk->header.type = type;
    blk->header.sector = offset / SECTOR;
    blk->status = STATUS_UNSET;
    blk->requestq.desc[HEADER].next = length != 0 ? DATA : STATUS_WITHOUT_DATA;
    if (length != 0)
        virtq_describe(&blk->requestq, DATA, data, length,
                       type == VIRTIO_BLK_T_IN ? VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE : VIRTQ_DESC_F_NEXT);
    virtq_offer(&blk->requestq, HEADER);
    virtq_wait(&blk->requestq);
    return blk->status == VIRTIO_BLK_S_OK;
}

bool virtio_blk_read(struct virtio_blk *blk, uint64_t offset, void *buffer, uint32_t length)
{
    return request(blk, VIRTIO_BLK_T_IN, offset, buffer, length);
}

bool virtio_blk_write(struct virtio_blk *blk, uint64_t offset, const void *buffer, uint32_t length)
{
    return request(blk, VIRTIO_BLK_T_OUT, offset, buffer, length);
}

bool virtio_blk_flush(struct virtio_blk *blk)
{
    return (blk->device.features & VIRTIO_BLK_F_FLUSH) == 0 || request(blk, VIRTIO_BLK_T_FLUSH, 0, NULL, 0);
}
