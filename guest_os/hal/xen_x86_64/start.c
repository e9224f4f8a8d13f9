/* The start of day: the kernel tells Xen where it takes traps, events and system calls, all in one hypercall; and what
 * the builder left is told to the kernel. */
#include "domain.h"
#include "kernel.h"
#include "registers.h"

const struct start_info *start_info;

extern char trap_stubs[], trap_stub_system_call[], system_call_entry[], event_entry[], failsafe_entry[]; /* entry.S */
extern char trap_stack_top[];                                                                            /* start.S */

#define STUB_SIZE 16
#define EXCEPTIONS 20
#define MASKS_EVENTS 4
#define RING3 3

/* All exceptions Xen can raise, and the system call gate; ends with an entry of zeros. */
static struct trap_info traps[EXCEPTIONS + 2];

static void fill_traps(void)
{
    unsigned count = 0;
    for (unsigned vector = 0; vector < EXCEPTIONS; vector++) {
        bool on_purpose = vector == VECTOR_BP || vector == VECTOR_OF;
        if (vector == VECTOR_NMI || vector == VECTOR_DF)
            continue; /* an NMI has a callback of its own, and a double fault is Xen's */
        traps[count++] = (struct trap_info){(uint8_t)vector, MASKS_EVENTS | (on_purpose ? RING3 : 0), FLAT_KERNEL_CS,
                                            (uint64_t)trap_stubs + vector * STUB_SIZE};
    }
    traps[count] = (struct trap_info){VECTOR_SYSCALL, MASKS_EVENTS | RING3, FLAT_KERNEL_CS,
                                      (uint64_t)trap_stub_system_call};
}

/* From start.S. */
_Noreturn void domain_start(const struct start_info *info)
{
    static const struct callback_register callbacks[] = {
        {CALLBACKTYPE_event, 0, (uint64_t)event_entry},
        {CALLBACKTYPE_failsafe, CALLBACKF_mask_events, (uint64_t)failsafe_entry},
        {CALLBACKTYPE_syscall, CALLBACKF_mask_events, (uint64_t)system_call_entry},
    };
    static struct multicall_entry calls[] = {
        {__HYPERVISOR_update_va_mapping, 0, {(uint64_t)&shared_info, 0, UVMF_INVLPG}},
        {__HYPERVISOR_set_trap_table, 0, {(uint64_t)traps}},
        {__HYPERVISOR_stack_switch, 0, {FLAT_KERNEL_SS, (uint64_t)trap_stack_top}},
        {__HYPERVISOR_callback_op, 0, {CALLBACKOP_register, (uint64_t)&callbacks[0]}},
        {__HYPERVISOR_callback_op, 0, {CALLBACKOP_register, (uint64_t)&callbacks[1]}},
        {__HYPERVISOR_callback_op, 0, {CALLBACKOP_register, (uint64_t)&callbacks[2]}},
    };
    start_info = info;
    fill_traps();
    calls[0].args[1] = info->shared_info | PTE_P | PTE_W | PTE_U | PTE_A | PTE_D;
    int64_t result = HYPERVISOR_multicall(calls, ARRAY_SIZE(calls));
    for (unsigned i = 0; i < ARRAY_SIZE(calls) && result == 0; i++)
        if ((int64_t)calls[i].result < 0)
            panic("Xen refused hypercall %lu of the start of day: %ld", calls[i].op, calls[i].result);
    if (result != 0)
        panic("Xen refused the start of day: %ld", result);
    events_start();
    kernel_start(0, 0);
}

const struct boot_info *hal_boot_info(void)
{
    static struct boot_info info;
    static char command_line[MAX_GUEST_CMDLINE];
    if (info.protocol == NULL) {
        memcpy(command_line, start_info->cmd_line, sizeof command_line - 1);
        info.protocol = "xen-pv";
        info.command_line = command_line;
        info.memory_bytes = start_info->nr_pages * PAGE_SIZE;
        info.range_count = 1;
        info.range[0] = (struct memory_range){0, info.memory_bytes};
    }
    return &info;
}

uint64_t trap_fault_address(void)
{
    return shared_info.vcpu_info[0].arch.cr2;
}

/* ---- user level ---------------------------------------------------------------------------------------------------- */

extern uint64_t user_enter(uint64_t pc, uint64_t stack, uint64_t argument); /* entry.S */

uint64_t hal_user_run(uint64_t pc, uint64_t stack, uint64_t argument)
{
    return user_enter(pc, stack, argument);
}
