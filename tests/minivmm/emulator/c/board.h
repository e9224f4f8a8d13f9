// What the guests of these tests share: the board's registers, and words on the serial port.
#include <stdint.h>

#define UART ((volatile uint8_t *)0x10000000)
#define PLIC 0x0c000000ul
#define MTIMECMP ((volatile uint64_t *)0x02004000)
#define MTIME ((volatile uint64_t *)0x0200bff8)
#define REG32(address) (*(volatile uint32_t *)(address))

#define MIE_MTIE (1ul << 7)
#define MIE_MEIE (1ul << 11)
#define MSTATUS_MIE 8

static inline void put(char c) { UART[0] = c; }
static inline void print(const char *s) { while (*s) put(*s++); }

// Source `irq` interrupts hart 0 in M-mode (context 0).
static inline void plic_enable(int irq) {
    REG32(PLIC + 4 * irq) = 1;
    REG32(PLIC + 0x2000) |= 1u << irq;
    REG32(PLIC + 0x200000) = 0;
}
static inline uint32_t plic_claim(void) { return REG32(PLIC + 0x200004); }
static inline void plic_complete(uint32_t irq) { REG32(PLIC + 0x200004) = irq; }

static inline void interrupts_to(void (*handler)(void), uint64_t enabled) {
    __asm__ volatile("csrw mtvec, %0; csrw mie, %1; csrsi mstatus, %2"
                     :: "r"(handler), "r"(enabled), "i"(MSTATUS_MIE) : "memory");
}

// Sleeps until the condition holds. Interrupts are off while it is looked at, or one that comes between the look and the
// wfi would be slept over; wfi wakes all the same.
#define WAIT_UNTIL(condition)                                                        \
    for (int over = 0; !over;) {                                                     \
        __asm__ volatile("csrci mstatus, %0" :: "i"(MSTATUS_MIE) : "memory");        \
        over = (condition);                                                          \
        if (!over) __asm__ volatile("wfi" ::: "memory");                             \
        __asm__ volatile("csrsi mstatus, %0" :: "i"(MSTATUS_MIE) : "memory");        \
    }
