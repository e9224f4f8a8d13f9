/* The ends a machine can come to, and the register accesses some workloads measure. */
#include "eights.h"
#include "hal.h"
#include "instructions.h"
#include "machine.h"

#define DEBUG_EXIT 0xf4       /* isa-debug-exit: a byte written ends the machine */
#define PVPANIC 0x505         /* pvpanic (QEMU docs/specs/pvpanic.txt): bit 0 = the guest panicked */
#define PVPANIC_PANICKED 1
#define I8042_COMMAND 0x64    /* keyboard controller */
#define I8042_RESET 0xfe      /* pulse the reset line */
#define UART_SCRATCH 0x3ff    /* 16550A: a byte that holds what was written, and does nothing */
#define EXIT_CRASHED 0x7f     /* for machines without pvpanic */

_Noreturn void hal_halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

_Noreturn void hal_exit(unsigned code)
{
    out8(DEBUG_EXIT, (uint8_t)code);
    hal_halt();
}

/* A machine with pvpanic may take a moment to end; one without it reads as all zeros or all ones there. */
_Noreturn void hal_crash(void)
{
    out8(PVPANIC, PVPANIC_PANICKED);
    uint8_t events = in8(PVPANIC);
    if ((events & PVPANIC_PANICKED) != 0 && events != 0xff)
        hal_halt();
    hal_exit(EXIT_CRASHED);
}

_Noreturn void hal_triple_fault(void)
{
    static const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) nothing = {0, 0};
    /* With an empty IDT the #UD cannot be delivered, nor the double fault after it: shutdown (SDM 6.15). */
    __asm__ volatile("lidt %0; ud2" : : "m"(nothing));
    __builtin_unreachable();
}

void hal_wait(void)
{
    /* sti holds interrupts back for one more instruction (SDM vol. 2, STI): none can come between it and hlt. */
    __asm__ volatile("sti; hlt; cli" : : : "memory");
}

void hal_memory_barrier(void)
{
    __asm__ volatile("mfence" : : : "memory");
}

const char *hal_device_absence(void)
{
    return NULL;
}

volatile void *hal_device_registers(uint64_t physical, size_t size)
{
    const uint64_t end = DEVICE_PHYSICAL + 0x40000000ull;
    if (physical < DEVICE_PHYSICAL || physical >= end || size > end - physical)
        return NULL;
    return (volatile void *)(physical - DEVICE_PHYSICAL + DEVICE_BASE);
}

static inline uint64_t cr8_through(uint64_t value)
{
    uint64_t read;
    __asm__ volatile("mov %1, %%cr8\n\tmov %%cr8, %0" : "=r"(read) : "r"(value));
    return read;
}

/* CR8 is the task priority: interrupts below it wait, which they do here anyway. */
uint64_t hal_privileged_register(unsigned eights)
{
    uint64_t sum = 0;
#define CR8_STEP(i) sum += cr8_through(i)
    while (eights-- > 0)
        EIGHT_TIMES(CR8_STEP);
    cr8_through(0);
    return sum;
}

const char *hal_port_prepare(uint8_t value)
{
    out8(UART_SCRATCH, value);
    return NULL;
}

uint64_t hal_port_read(unsigned eights)
{
    uint64_t sum = 0;
#define PORT_STEP(i) sum += in8(UART_SCRATCH)
    while (eights-- > 0)
        EIGHT_TIMES(PORT_STEP);
    return sum;
}

/* Through the keyboard controller, which QEMU's microvm lacks; then as Linux does it (arch/x86/kernel/reboot.c). */
_Noreturn void hal_reset(void)
{
    out8(I8042_COMMAND, I8042_RESET);
    hal_triple_fault();
}
