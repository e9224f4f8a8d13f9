// virtio-blk by interrupt: prints sector 1, writes it back to sector 2 with the first byte changed.
#include "board.h"

#define BASE 0x10001000ul
#define VREG(offset) REG32(BASE + (offset))

static struct { uint64_t addr; uint32_t len; uint16_t flags, next; } desc[8] __attribute__((aligned(16)));
static volatile struct { uint16_t flags, idx, ring[8]; } avail __attribute__((aligned(2)));
static volatile struct { uint16_t flags, idx; struct { uint32_t id, len; } ring[8]; } used __attribute__((aligned(4)));
static struct { uint32_t type, reserved; uint64_t sector; } header;
static uint8_t data[512];
static volatile uint8_t status;
static volatile int interrupts;

__attribute__((interrupt, aligned(4))) static void handler(void) {
    uint32_t irq = plic_claim();
    VREG(0x064) = VREG(0x060);
    interrupts++;
    plic_complete(irq);
}

static void queue_address(int offset, const volatile void *p) {
    VREG(offset) = (uint32_t)(uint64_t)p;
    VREG(offset + 4) = (uint64_t)p >> 32;
}

static int request(uint32_t type, uint64_t sector) {
    uint16_t before = used.idx;
    header.type = type, header.sector = sector;
    status = 0xff;
    desc[0].addr = (uint64_t)&header, desc[0].len = 16, desc[0].flags = 1, desc[0].next = 1;
    desc[1].addr = (uint64_t)data, desc[1].len = 512, desc[1].flags = type ? 1 : 3, desc[1].next = 2;
    desc[2].addr = (uint64_t)&status, desc[2].len = 1, desc[2].flags = 2;
    avail.ring[avail.idx % 8] = 0;
    __asm__ volatile("fence" ::: "memory");
    avail.idx++;
    __asm__ volatile("fence" ::: "memory");
    VREG(0x050) = 0;
    WAIT_UNTIL(used.idx != before)
    __asm__ volatile("fence" ::: "memory");
    return status;
}

int main(void) {
    if (VREG(0x000) != 0x74726976 || VREG(0x004) != 2 || VREG(0x008) != 2) return 1;
    VREG(0x070) = 1;
    VREG(0x070) = 3;
    VREG(0x024) = 1, VREG(0x020) = 1;  // VIRTIO_F_VERSION_1
    VREG(0x070) = 11;
    if (!(VREG(0x070) & 8)) return 2;
    VREG(0x030) = 0, VREG(0x038) = 8;
    queue_address(0x080, desc), queue_address(0x090, &avail), queue_address(0x0a0, &used);
    VREG(0x044) = 1;
    VREG(0x070) = 15;
    plic_enable(1);
    interrupts_to(handler, MIE_MEIE);
    if (request(0, 1)) return 3;
    for (int i = 0; i < 512; i++) put(data[i]);
    data[0] = '!';
    if (request(1, 2)) return 4;
    return interrupts >= 2 ? 0 : 5;
}
