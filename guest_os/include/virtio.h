/* Virtio 1.2 (OASIS, July 2022): structures with the specification's names, and the drivers' functions. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Device types (section 5) */
enum virtio_type { VIRTIO_BLK = 2, VIRTIO_CONSOLE = 3, VIRTIO_RNG = 4 };

/* MMIO registers, byte offsets (4.2.2, table 4.1) */
enum virtio_register {
    VIRTIO_MAGIC_VALUE = 0x000,
    VIRTIO_VERSION = 0x004,
    VIRTIO_DEVICE_ID = 0x008,
    VIRTIO_DEVICE_FEATURES = 0x010,
    VIRTIO_DEVICE_FEATURES_SEL = 0x014,
    VIRTIO_DRIVER_FEATURES = 0x020,
    VIRTIO_DRIVER_FEATURES_SEL = 0x024,
    VIRTIO_QUEUE_SEL = 0x030,
    VIRTIO_QUEUE_NUM_MAX = 0x034,
    VIRTIO_QUEUE_NUM = 0x038,
    VIRTIO_QUEUE_READY = 0x044,
    VIRTIO_QUEUE_NOTIFY = 0x050,
    VIRTIO_INTERRUPT_STATUS = 0x060,
    VIRTIO_INTERRUPT_ACK = 0x064,
    VIRTIO_STATUS = 0x070,
    VIRTIO_QUEUE_DESC_LOW = 0x080,
    VIRTIO_QUEUE_DRIVER_LOW = 0x090,
    VIRTIO_QUEUE_DEVICE_LOW = 0x0a0,
    VIRTIO_CONFIG = 0x100,
};
#define VIRTIO_MAGIC 0x74726976 /* "virt" */
#define VIRTIO_MODERN 2         /* Version */

/* Device status (2.1) */
#define VIRTIO_STATUS_ACKNOWLEDGE 1
#define VIRTIO_STATUS_DRIVER 2
#define VIRTIO_STATUS_DRIVER_OK 4
#define VIRTIO_STATUS_FEATURES_OK 8
#define VIRTIO_STATUS_NEEDS_RESET 64
#define VIRTIO_STATUS_FAILED 128

/* Feature bits common to all devices (6) */
#define VIRTIO_F_EVENT_IDX (1ull << 29)
#define VIRTIO_F_VERSION_1 (1ull << 32)

/* Split virtqueues (2.7) */
#define VIRTQ_SIZE 8
#define VIRTQ_DESC_F_NEXT 1
#define VIRTQ_DESC_F_WRITE 2
#define VIRTQ_AVAIL_F_NO_INTERRUPT 1
#define VIRTQ_USED_F_NO_NOTIFY 1

struct virtq_desc { /* 2.7.5 */
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};
struct virtq_avail { /* 2.7.6 */
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[VIRTQ_SIZE];
    uint16_t used_event;
};
struct virtq_used_elem { /* 2.7.8 */
    uint32_t id;
    uint32_t len;
};
struct virtq_used {
    uint16_t flags;
    uint16_t idx;
    struct virtq_used_elem ring[VIRTQ_SIZE];
    uint16_t avail_event;
};

struct virtq {
    struct virtq_desc desc[VIRTQ_SIZE] __attribute__((aligned(16)));
    struct virtq_avail avail __attribute__((aligned(2)));
    volatile struct virtq_used used __attribute__((aligned(4)));
    volatile uint32_t *registers;
    uint16_t index; /* the queue's number at its device */
    uint16_t seen;  /* used entries taken so far */
    bool event_idx;
};

struct virtio_device {
    volatile uint32_t *registers; /* NULL: there is none */
    unsigned irq;
    uint64_t features; /* agreed on */
    volatile uint32_t interrupts;
};

/* ---- core (virtio_mmio.c) ------------------------------------------------------------------------------------------ */

/* The registers of any device of the command line; NULL when there is none. */
volatile uint32_t *virtio_any_registers(void);
/* Finds the device of that type, agrees with it on as many of `wanted` features as it has, and handles its
 * interrupt. False when there is none, or it does not agree. */
bool virtio_start(struct virtio_device *device, enum virtio_type type, uint64_t wanted);
/* Gives the device a queue; before virtio_ready(). False when the device has no such queue. */
bool virtq_start(struct virtq *queue, struct virtio_device *device, uint16_t index);
void virtio_ready(struct virtio_device *device);
volatile uint32_t *virtio_config(const struct virtio_device *device);

/* Fills descriptor `i` with memory of the kernel's; `flags` VIRTQ_DESC_F_*; with NEXT it goes on at descriptor i+1. */
void virtq_describe(struct virtq *queue, unsigned i, const volatile void *buffer, uint32_t length, uint16_t flags);
/* Offers the chain that begins at descriptor `head`, and tells the device unless it asked not to be told. */
void virtq_offer(struct virtq *queue, uint16_t head);
/* Sleeps until the device has used a chain; returns the number of bytes it wrote. */
uint32_t virtq_wait(struct virtq *queue);
bool virtq_has_used(const struct virtq *queue);

/* ---- drivers --------------------------------------------------------------------------------------------------------- */

struct virtio_blk;
struct virtio_blk *virtio_blk_disk(void); /* the first disk, started on first use; NULL when there is none */
uint64_t virtio_blk_size(const struct virtio_blk *disk); /* bytes */
bool virtio_blk_read_only(const struct virtio_blk *disk);
/* Offset and length are multiples of 512. False when the device says so. */
bool virtio_blk_read(struct virtio_blk *disk, uint64_t offset, void *buffer, uint32_t length);
bool virtio_blk_write(struct virtio_blk *disk, uint64_t offset, const void *buffer, uint32_t length);
bool virtio_blk_flush(struct virtio_blk *disk);

/* Fills the buffer with random bytes; returns how many the device gave, 0 when there is no device. */
uint32_t virtio_rng_read(void *buffer, uint32_t length);

bool virtio_console_start(void); /* false when there is none */
void virtio_console_write(const char *text, uint32_t length);
/* Waits for input; returns its length, at most `size`. */
uint32_t virtio_console_read(char *text, uint32_t size);
