/* Exceptions and interrupts. */
#include "kernel.h"
#include "machine.h"
#include "registers.h"
#include "riscv.h"

extern char user_copy_load[], user_copy_end[]; /* traps.S */

/* Privileged, table 4.2 */
static const char *const cause_names[] = {
    "instruction address misaligned", "instruction access fault", "illegal instruction", "breakpoint",
    "load address misaligned", "load access fault", "store address misaligned", "store access fault",
    "environment call from U-mode", "environment call from S-mode", [12] = "instruction page fault",
    [13] = "load page fault", [15] = "store page fault",
};

static enum trap_cause cause_of(uint64_t cause)
{
    switch (cause) {
    case CAUSE_BREAKPOINT: return TRAP_DIVIDE; /* processor.h: what a test for a zero divisor leads to */
    case CAUSE_ILLEGAL_INSTRUCTION: return TRAP_ILLEGAL;
    case CAUSE_INSTRUCTION_ACCESS:
    case CAUSE_LOAD_ACCESS:
    case CAUSE_STORE_ACCESS: return TRAP_PROTECTION;
    case CAUSE_INSTRUCTION_PAGE_FAULT:
    case CAUSE_LOAD_PAGE_FAULT:
    case CAUSE_STORE_PAGE_FAULT: return TRAP_PAGE;
    default: return TRAP_OTHER;
    }
}

/* Whether the page was there is not told: ACCESS_PRESENT is never set. */
static uint64_t access_of(uint64_t cause, bool from_user)
{
    return (cause == CAUSE_STORE_PAGE_FAULT ? ACCESS_WRITE : 0) |
           (cause == CAUSE_INSTRUCTION_PAGE_FAULT ? ACCESS_FETCH : 0) | (from_user ? ACCESS_USER : 0);
}

void trap_handle(struct registers *r)
{
    if ((int64_t)r->cause < 0) {
        interrupt_handle(r->cause & 0xff);
        return;
    }
    bool from_user = (r->status & SSTATUS_SPP) == 0;
    enum trap_cause cause = cause_of(r->cause);
    if (cause == TRAP_PAGE && !from_user && r->pc == (uint64_t)user_copy_load) {
        r->pc = (uint64_t)user_copy_end; /* a0 is false already */
        return;
    }
    const uint64_t known = sizeof cause_names / sizeof cause_names[0];
    struct trap trap = {
        .cause = cause,
        .from_user = from_user,
        .code = cause == TRAP_PAGE ? access_of(r->cause, from_user) : 0,
        .address = cause == TRAP_PAGE ? r->value : 0,
        .pc = r->pc,
        .name = r->cause < known && cause_names[r->cause] != NULL ? cause_names[r->cause] : "unexpected cause",
    };
    if (!kernel_trap(&trap, r))
        kernel_panic_trap(&trap, r);
}

void hal_trap_resume_at(struct registers *r, uint64_t pc, uint64_t first, uint64_t second)
{
    r->pc = pc;
    r->x[10] = first;
    r->x[11] = second;
}

void hal_registers_print(const struct registers *r)
{
    static const char *const names[] = {"",   "ra", "sp", "gp", "tp",  "t0",  "t1", "t2", "s0", "s1", "a0",
                                        "a1", "a2", "a3", "a4", "a5",  "a6",  "a7", "s2", "s3", "s4", "s5",
                                        "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6"};
    for (unsigned i = 1; i < 32; i++)
        print("  %s %016lx%s", names[i], r->x[i], i % 4 == 0 || i == 31 ? "\n" : "");
    print("  pc %016lx  sstatus %016lx  satp %016lx\n", r->pc, r->status, read_csr(satp));
    print("  scause %lx  stval %016lx\n", r->cause, r->value);
}

uint64_t hal_user_run(uint64_t pc, uint64_t stack, uint64_t argument)
{
    return user_enter(pc, stack, argument);
}
