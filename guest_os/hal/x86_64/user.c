/* User mode: the registers that make `syscall` work, and the page it lands on. */
#include "user.h"
#include "instructions.h"
#include "kernel.h"
#include "machine.h"

_Static_assert(CAUSE_DIVIDE == TRAP_DIVIDE && CAUSE_PAGE == TRAP_PAGE, "machine.h: causes");

extern char gate[], gate_system_call[];                                     /* user.S */
extern uint64_t user_enter(uint64_t pc, uint64_t stack, uint64_t argument); /* user.S */

bool hal_gate_map(struct space *space)
{
    return hal_space_map(space, GATE_ADDRESS, hal_physical(gate), PAGE_SIZE, PAGE_USER | PAGE_EXECUTE);
}

void hal_no_execute_enable(void)
{
    static bool enabled;
    if (!enabled)
        write_msr(MSR_EFER, read_msr(MSR_EFER) | EFER_SCE | EFER_NXE);
    enabled = true;
}

uint64_t hal_user_run(uint64_t pc, uint64_t stack, uint64_t argument)
{
    static bool ready;
    if (!ready) {
        /* STAR (SDM 5.8.8): syscall loads KERNEL_CS and the next selector; sysret USER32_CS + 16 and + 8. */
        write_msr(MSR_STAR, (uint64_t)USER32_CS << 48 | (uint64_t)KERNEL_CS << 32);
        write_msr(MSR_LSTAR, GATE_ADDRESS + (uint64_t)(gate_system_call - gate));
        write_msr(MSR_SFMASK, FLAGS_IF | FLAGS_TF | FLAGS_DF | FLAGS_NT | FLAGS_AC);
        ready = true;
    }
    return user_enter(pc, stack, argument);
}
