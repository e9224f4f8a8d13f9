/* The other processors: each gets a context to start with, and is brought up (vcpu.h). */
#include "domain.h"
#include "kernel.h"

#define CPU_STACK 256 /* bytes: a return address is all it holds */

extern char cpu_start[];            /* entry.S */
volatile unsigned cpus_running = 1; /* counted up by each processor (entry.S) */

unsigned hal_cpus(void)
{
    return cpus_running;
}

void hal_cpus_start(void)
{
    static char stacks[XEN_LEGACY_MAX_VCPUS][CPU_STACK] __attribute__((aligned(16)));
    static struct vcpu_guest_context context; /* read by Xen during the call; the same for all but for three fields */
    context.flags = VGCF_in_kernel;
    context.user_regs.rip = (uint64_t)cpu_start;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.user_regs.rflags = FLAGS_FIXED | FLAGS_IF;
    context.kernel_ss = FLAT_KERNEL_SS;
    context.ctrlreg[3] = machine_address((const void *)start_info->pt_base);
    /* A number too large has no CPU: -ENOENT. */
    for (unsigned cpu = 1; cpu < XEN_LEGACY_MAX_VCPUS && HYPERVISOR_vcpu_op(VCPUOP_is_up, cpu, NULL) >= 0; cpu++) {
        context.user_regs.rdi = cpu;
        context.user_regs.rsp = context.kernel_sp = (uint64_t)stacks[cpu] + CPU_STACK;
        if (HYPERVISOR_vcpu_op(VCPUOP_initialise, cpu, &context) == 0)
            HYPERVISOR_vcpu_op(VCPUOP_up, cpu, NULL);
    }
}
