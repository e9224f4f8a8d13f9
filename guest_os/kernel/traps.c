/* What the kernel does about a trap: let the code go on at the recovery address it registered, if it did. */
#include "kernel.h"

uint64_t kernel_recovery;
struct trap kernel_last_trap;

bool kernel_trap(const struct trap *trap, struct registers *registers)
{
    uint64_t recovery = trap->from_user ? program_recovery : kernel_recovery;
    if (recovery == 0 && trap->from_user)
        program_killed(trap);
    if (recovery == 0)
        return false;
    if (!trap->from_user)
        kernel_last_trap = *trap;
    hal_trap_resume_at(registers, recovery, trap->address, trap->cause);
    return true;
}
