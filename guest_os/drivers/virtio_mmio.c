/* Virtio over MMIO (virtio 1.2, 4.2): modern devices, split rings, event index. Devices are found where Linux finds
 * them: `virtio_mmio.device=<size>@<base>:<irq>[:<id>]` on the command line
 * (Documentation/admin-guide/kernel-parameters.txt). */
#include "virtio.h"
#include "kernel.h"

#define REGISTERS_SIZE 0x200
#define FEATURE_WORDS 2

static uint32_t read_register(volatile uint32_t *registers, enum virtio_register offset)
{
    return registers[offset / 4];
}

static void write_register(volatile uint32_t *registers, enum virtio_register offset, uint32_t value)
{
    registers[offset / 4] = value;
}

static size_t up_to(const char *text, size_t length, char mark)
{
    size_t at = 0;
    while (at < length && text[at] != mark)
        at++;
    return at;
}

/* Reads `<size>@<base>:<irq>[:<id>]`; false when it is anything else or describes what cannot be reached. */
static bool parse_device(const char *text, size_t length, volatile uint32_t **registers, unsigned *irq)
{
    uint64_t size, base, line;
    size_t at = up_to(text, length, '@');
    if (at == length || !text_number(text, at, &size) || size < REGISTERS_SIZE)
        return false;
    text += at + 1, length -= at + 1;
    size_t colon = up_to(text, length, ':');
    if (colon == length || !text_number(text, colon, &base) || base % 4 != 0)
        return false;
    text += colon + 1, length -= colon + 1;
    if (!text_number(text, up_to(text, length, ':'), &line))
        return false;
    *registers = hal_device_registers(base, REGISTERS_SIZE);
    *irq = (unsigned)line;
    return *registers != NULL && line == *irq;
}

/* The n-th device of the command line; false after the last. What is malformed is reported once and passed over. */
static bool nth_device(unsigned n, volatile uint32_t **registers, unsigned *irq)
{
    static uint32_t reported;
    size_t length;
    const char *text = command_line_value("virtio_mmio.device", n, &length);
    *registers = NULL;
    if (text == NULL || n >= 32)
        return false;
    if (!parse_device(text, length, registers, irq)) {
        *registers = NULL;
        if ((reported & 1u << n) == 0)
            print("virtio_mmio.device=%.*s: not understood\n", (int)length, text);
        reported |= 1u << n;
    }
    return true;
}

volatile uint32_t *virtio_any_registers(void)
{
    volatile uint32_t *registers;
    unsigned irq;
    for (unsigned n = 0; nth_device(n, &registers, &irq); n++)
        if (registers != NULL && read_register(registers, VIRTIO_MAGIC_VALUE) == VIRTIO_MAGIC)
            return registers + VIRTIO_MAGIC_VALUE / 4;
    return NULL;
}

static bool find(struct virtio_device *device, enum virtio_type type)
{
    for (unsigned n = 0; nth_device(n, &device->registers, &device->irq); n++)
        if (device->registers != NULL && read_register(device->registers, VIRTIO_MAGIC_VALUE) == VIRTIO_MAGIC &&
            read_register(device->registers, VIRTIO_VERSION) == VIRTIO_MODERN &&
            read_register(device->registers, VIRTIO_DEVICE_ID) == type)
            return true;
    device->registers = NULL;
    return false;
}

/* The line falls when the status is acknowledged; only then can it, edge triggered, rise again. */
static void interrupt(void *context)
{
    struct virtio_device *device = context;
    device->interrupts++;
    write_register(device->registers, VIRTIO_INTERRUPT_ACK, read_register(device->registers, VIRTIO_INTERRUPT_STATUS));
}

static void add_status(struct virtio_device *device, uint32_t bits)
{
    write_register(device->registers, VIRTIO_STATUS, read_register(device->registers, VIRTIO_STATUS) | bits);
}

/* 3.1.1, steps 1 to 6 */
bool virtio_start(struct virtio_device *device, enum virtio_type type, uint64_t wanted)
{
    if (!find(device, type))
        return false;
    volatile uint32_t *registers = device->registers;
    write_register(registers, VIRTIO_STATUS, 0);
    while (read_register(registers, VIRTIO_STATUS) != 0)
        ;
    add_status(device, VIRTIO_STATUS_ACKNOWLEDGE);
    add_status(device, VIRTIO_STATUS_DRIVER);
    device->features = 0;
    for (unsigned word = 0; word < FEATURE_WORDS; word++) {
        write_register(registers, VIRTIO_DEVICE_FEATURES_SEL, word);
        uint64_t offered = read_register(registers, VIRTIO_DEVICE_FEATURES);
        device->features |= offered << 32 * word & (wanted | VIRTIO_F_VERSION_1);
        write_register(registers, VIRTIO_DRIVER_FEATURES_SEL, word);
        write_register(registers, VIRTIO_DRIVER_FEATURES, (uint32_t)(device->features >> 32 * word));
    }
    add_status(device, VIRTIO_STATUS_FEATURES_OK);
    if ((device->features & VIRTIO_F_VERSION_1) == 0 ||
        (read_register(registers, VIRTIO_STATUS) & VIRTIO_STATUS_FEATURES_OK) == 0 ||
        !hal_irq_handle(device->irq, interrupt, device)) {
        add_status(device, VIRTIO_STATUS_FAILED);
        return false;
    }
    return true;
}

void virtio_ready(struct virtio_device *device)
{
    add_status(device, VIRTIO_STATUS_DRIVER_OK);
}

volatile uint32_t *virtio_config(const struct virtio_device *device)
{
    return device->registers + VIRTIO_CONFIG / 4;
}

static void write_address(volatile uint32_t *registers, enum virtio_register low, const volatile void *address)
{
    uint64_t physical = hal_physical((const void *)address);
    registers[low / 4] = (uint32_t)physical;
    registers[low / 4 + 1] = (uint32_t)(physical >> 32);
}

/* 4.2.3.2 */
bool virtq_start(struct virtq *queue, struct virtio_device *device, uint16_t index)
{
    volatile uint32_t *registers = device->registers;
    write_register(registers, VIRTIO_QUEUE_SEL, index);
    if (read_register(registers, VIRTIO_QUEUE_READY) != 0 ||
        read_register(registers, VIRTIO_QUEUE_NUM_MAX) < VIRTQ_SIZE)
        return false;
    *queue = (struct virtq){
        .registers = registers,
        .index = index,
        .event_idx = (device->features & VIRTIO_F_EVENT_IDX) != 0,
        .avail = {.flags = VIRTQ_AVAIL_F_NO_INTERRUPT, .used_event = 0xffff},
    };
    if (queue->event_idx)
        queue->avail.flags = 0; /* 2.7.7.1: with the event index, always 0 */
    write_register(registers, VIRTIO_QUEUE_NUM, VIRTQ_SIZE);
    write_address(registers, VIRTIO_QUEUE_DESC_LOW, queue->desc);
    write_address(registers, VIRTIO_QUEUE_DRIVER_LOW, &queue->avail);
    write_address(registers, VIRTIO_QUEUE_DEVICE_LOW, &queue->used);
    write_register(registers, VIRTIO_QUEUE_READY, 1);
    return true;
}

void virtq_describe(struct virtq *queue, unsigned i, const volatile void *buffer, uint32_t length, uint16_t flags)
{
    queue->desc[i] = (struct virtq_desc){hal_physical((const void *)buffer), length, flags, (uint16_t)(i + 1)};
}

void virtq_offer(struct virtq *queue, uint16_t head)
{
    volatile struct virtq_avail *avail = &queue->avail;
    uint16_t old = avail->idx;
    avail->ring[old % VIRTQ_SIZE] = head;
    __atomic_thread_fence(__ATOMIC_RELEASE); /* 2.7.13.2: the entry before the index; no instruction on x86 */
    avail->idx = (uint16_t)(old + 1);
    hal_memory_barrier(); /* 2.7.13.4: the index before the device's wish is read */
    bool notify = queue->event_idx ? queue->used.avail_event == old : !(queue->used.flags & VIRTQ_USED_F_NO_NOTIFY);
    if (notify)
        write_register(queue->registers, VIRTIO_QUEUE_NOTIFY, queue->index);
}

bool virtq_has_used(const struct virtq *queue)
{
    return queue->used.idx != queue->seen;
}

static void want_interrupt(struct virtq *queue, bool wanted)
{
    volatile struct virtq_avail *avail = &queue->avail;
    if (queue->event_idx)
        avail->used_event = (uint16_t)(queue->seen - !wanted); /* one behind: a point already passed */
    else
        avail->flags = wanted ? 0 : VIRTQ_AVAIL_F_NO_INTERRUPT;
    hal_memory_barrier(); /* 2.7.14: the wish before the ring is looked at again */
}

/* A device that completes before the kick returns costs no interrupt: one is asked for only after a first look. */
uint32_t virtq_wait(struct virtq *queue)
{
    if (!virtq_has_used(queue)) {
        want_interrupt(queue, true);
        while (!virtq_has_used(queue))
            hal_wait();
        if (!queue->event_idx)
            want_interrupt(queue, false);
    }
    return queue->used.ring[queue->seen++ % VIRTQ_SIZE].len;
}
