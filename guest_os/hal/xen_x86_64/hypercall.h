/* Hypercalls: a call into the page Xen fills, 32 bytes for each number (xen.h, "Hypercall calling convention": arguments
 * in rdi, rsi, rdx, r10; rax the result, negative for an error; rcx, r11 and the arguments are lost). */
#pragma once
#include "xen.h"

#define HYPERCALL_TEXT_(number) #number
#define HYPERCALL_TEXT(number) HYPERCALL_TEXT_(number)
#define HYPERCALL(name, a, b, c, d)                                                                       \
    ({                                                                                                    \
        int64_t result_;                                                                                  \
        uint64_t a_ = (uint64_t)(a), b_ = (uint64_t)(b), c_ = (uint64_t)(c);                              \
        register uint64_t d_ __asm__("r10") = (uint64_t)(d);                                              \
        __asm__ volatile("call hypercall_page + 32 * " HYPERCALL_TEXT(__HYPERVISOR_##name)                \
                         : "=a"(result_), "+D"(a_), "+S"(b_), "+d"(c_), "+r"(d_)                          \
                         :                                                                                \
                         : "rcx", "r8", "r9", "r11", "memory");                                           \
        result_;                                                                                          \
    })

static inline int64_t HYPERVISOR_mmu_update(const struct mmu_update *requests, unsigned count)
{
    return HYPERCALL(mmu_update, requests, count, 0, DOMID_SELF);
}

static inline int64_t HYPERVISOR_mmuext_op(const struct mmuext_op *operations, unsigned count)
{
    return HYPERCALL(mmuext_op, operations, count, 0, DOMID_SELF);
}

static inline int64_t HYPERVISOR_update_va_mapping(uint64_t address, uint64_t entry, uint64_t flags)
{
    return HYPERCALL(update_va_mapping, address, entry, flags, 0);
}

static inline int64_t HYPERVISOR_multicall(struct multicall_entry *calls, unsigned count)
{
    return HYPERCALL(multicall, calls, count, 0, 0);
}

static inline int64_t HYPERVISOR_console_write(const char *text, uint64_t length)
{
    return HYPERCALL(console_io, CONSOLEIO_write, length, text, 0);
}

static inline int64_t HYPERVISOR_event_channel_op(unsigned command, void *argument)
{
    return HYPERCALL(event_channel_op, command, argument, 0, 0);
}

static inline int64_t HYPERVISOR_sched_op(unsigned command, const void *argument)
{
    return HYPERCALL(sched_op, command, argument, 0, 0);
}

static inline int64_t HYPERVISOR_vcpu_op(unsigned command, unsigned vcpu, const void *argument)
{
    return HYPERCALL(vcpu_op, command, vcpu, argument, 0);
}

static inline int64_t HYPERVISOR_set_debugreg(unsigned number, uint64_t value)
{
    return HYPERCALL(set_debugreg, number, value, 0, 0);
}

static inline int64_t HYPERVISOR_get_debugreg(unsigned number)
{
    return HYPERCALL(get_debugreg, number, 0, 0, 0);
}
