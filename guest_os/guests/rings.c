/* Gives a virtio device a broken virtqueue: `rings=NAME`, one of the table below; prints whether the device noticed. */
#include "kernel.h"
#include "virtio.h"

static struct virtio_device device;
static struct virtq queue;
static uint8_t buffer[4096];

static void loop(void) /* a chain that comes back to itself */
{
    virtq_describe(&queue, 0, buffer, sizeof buffer, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT);
    queue.desc[0].next = 0;
}

static void outside(void) /* a buffer that is not memory */
{
    virtq_describe(&queue, 0, buffer, sizeof buffer, VIRTQ_DESC_F_WRITE);
    queue.desc[0].addr = 0x7fffffffff000;
}

static void wraps(void) /* a buffer whose end passes 2^64 */
{
    virtq_describe(&queue, 0, buffer, 0xffffffff, VIRTQ_DESC_F_WRITE);
    queue.desc[0].addr = UINT64_MAX - 4096;
}

static void next_outside(void) /* a chain that leaves the table */
{
    virtq_describe(&queue, 0, buffer, sizeof buffer, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT);
    queue.desc[0].next = 0xffff;
}

static void order(void) /* a readable buffer after a writable one (2.7.4.2) */
{
    virtq_describe(&queue, 0, buffer, 16, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT);
    virtq_describe(&queue, 1, buffer + 16, 16, 0);
}

static void empty(void) /* a buffer of no bytes */
{
    virtq_describe(&queue, 0, buffer, 0, VIRTQ_DESC_F_WRITE);
}

static const struct {
    const char *name;
    void (*make)(void);
    uint16_t head;  /* offered */
    uint16_t ahead; /* how much further than one the available index goes */
} broken[] = {
    {"loop", loop, 0, 0},
    {"outside", outside, 0, 0},
    {"wraps", wraps, 0, 0},
    {"next-outside", next_outside, 0, 0},
    {"order", order, 0, 0},
    {"empty", empty, 0, 0},
    {"head-outside", empty, 0xffff, 0},
    {"index-ahead", empty, 0, 1000},
    {"kicks", empty, 0, 0}, /* notifies without end */
};

int guest_main(void)
{
    size_t length;
    const char *wanted = command_line_value("rings", 0, &length);
    if (!virtio_start(&device, VIRTIO_RNG, 0) || !virtq_start(&queue, &device, 0))
        panic("no virtio-rng device");
    for (unsigned i = 0; wanted != NULL && i < ARRAY_SIZE(broken); i++) {
        char name[32];
        write_text(name, sizeof name, "%.*s", (int)length, wanted);
        if (!text_equal(broken[i].name, name))
            continue;
        virtio_ready(&device);
        broken[i].make();
        queue.avail.idx = broken[i].ahead;
        virtq_offer(&queue, broken[i].head);
        while (text_equal(name, "kicks"))
            device.registers[VIRTIO_QUEUE_NOTIFY / 4] = 0;
        hal_timer_start(100);
        for (uint64_t start = hal_ticks(); hal_ticks() - start < 10;)
            hal_wait(); /* the device may look at the ring later than the kick */
        uint32_t status = device.registers[VIRTIO_STATUS / 4];
        print("{\"rings\":\"%s\",\"needs_reset\":%s,\"used\":%u}\n", name,
              status & VIRTIO_STATUS_NEEDS_RESET ? "true" : "false", queue.used.idx);
        return 0;
    }
    panic("rings=%s: unknown", wanted != NULL ? wanted : "");
}
