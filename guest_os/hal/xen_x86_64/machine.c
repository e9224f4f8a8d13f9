/* The ends a domain can come to, and what a domain has and has not in place of privileged instructions and devices. */
#include "domain.h"
#include "hal.h"

#define EXIT_CODE_SHIFT 8 /* Xen looks at the low byte of the reason only: to it, every code is an ordinary power-off */

_Noreturn static void shut_down(unsigned reason)
{
    struct sched_shutdown shutdown = {reason};
    for (;;)
        HYPERVISOR_sched_op(SCHEDOP_shutdown, &shutdown);
}

_Noreturn void hal_exit(unsigned code)
{
    shut_down(SHUTDOWN_poweroff | code << EXIT_CODE_SHIFT);
}

_Noreturn void hal_crash(void)
{
    shut_down(SHUTDOWN_crash);
}

_Noreturn void hal_reset(void)
{
    shut_down(SHUTDOWN_reboot);
}

/* Events masked, and down: only another CPU could bring it up again. */
_Noreturn void hal_halt(void)
{
    for (;;)
        HYPERVISOR_vcpu_op(VCPUOP_down, 0, NULL);
}

void hal_memory_barrier(void)
{
    __asm__ volatile("mfence" : : : "memory");
}

/* A debug register stands for CR8, which a domain does not have; with DR7 at rest it does nothing. */
uint64_t hal_privileged_register(unsigned eights)
{
    uint64_t sum = 0;
    while (eights-- > 0) {
        for (uint64_t value = 1; value <= 8; value++) {
            HYPERVISOR_set_debugreg(0, value);
            sum += (uint64_t)HYPERVISOR_get_debugreg(0);
        }
    }
    HYPERVISOR_set_debugreg(0, 0);
    return sum;
}

const char *hal_port_prepare(uint8_t value)
{
    (void)value;
    return "a paravirtual domain has no I/O ports";
}

uint64_t hal_port_read(unsigned eights)
{
    (void)eights;
    return 0;
}

const char *hal_device_absence(void)
{
    return "a paravirtual domain has no memory-mapped device";
}

volatile void *hal_device_registers(uint64_t physical, size_t size)
{
    (void)physical, (void)size;
    return NULL;
}
