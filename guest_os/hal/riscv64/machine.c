/* The ends a machine can come to, its devices, and the register accesses some workloads measure. */
#include "machine.h"
#include "eights.h"
#include "hal.h"
#include "riscv.h"

#define EXIT_CRASHED 0x7f /* this machine has no pvpanic */

static void finish(uint32_t value)
{
    *(volatile uint32_t *)(DEVICE_BASE + TEST_FINISHER) = value;
}

_Noreturn void hal_halt(void)
{
    write_csr(sie, 0);
    for (;;)
        __asm__ volatile("wfi");
}

_Noreturn void hal_exit(unsigned code)
{
    finish(code == 0 ? FINISHER_PASS : (code & 0xff) << 16 | FINISHER_FAIL);
    hal_halt();
}

_Noreturn void hal_crash(void)
{
    hal_exit(EXIT_CRASHED);
}

_Noreturn void hal_reset(void)
{
    finish(FINISHER_RESET);
    hal_halt();
}

/* No fault shuts a hart down: one whose trap entry is not there faults for ever. */
_Noreturn void hal_triple_fault(void)
{
    write_csr(stvec, 0);
    __asm__ volatile("unimp");
    __builtin_unreachable();
}

void hal_memory_barrier(void)
{
    __asm__ volatile("fence iorw, iorw" : : : "memory");
}

const char *hal_device_absence(void)
{
    return NULL;
}

volatile void *hal_device_registers(uint64_t physical, size_t size)
{
    if (physical >= DEVICE_REACH || size > DEVICE_REACH - physical)
        return NULL;
    return (volatile void *)(DEVICE_BASE + physical);
}

static inline uint64_t sscratch_through(uint64_t value)
{
    uint64_t read;
    __asm__ volatile("csrw sscratch, %1\n\tcsrr %0, sscratch" : "=r"(read) : "r"(value));
    return read;
}

/* sscratch must be 0 whenever a trap can come (traps.S); none can meanwhile. */
uint64_t hal_privileged_register(unsigned eights)
{
    uint64_t sum = 0;
#define STEP(i) sum += sscratch_through(i)
    while (eights-- > 0)
        EIGHT_TIMES(STEP);
    sscratch_through(0);
    return sum;
}

const char *hal_port_prepare(uint8_t value)
{
    (void)value;
    return "RISC-V has no I/O ports";
}

uint64_t hal_port_read(unsigned eights)
{
    (void)eights;
    return 0;
}

/* One hart runs; the others were parked at the start (boot.S). */
void hal_cpus_start(void)
{
}

unsigned hal_cpus(void)
{
    return 1;
}
