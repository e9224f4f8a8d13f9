/* Exceptions, and the slow ways into a system call. */
#include "kernel.h"
#include "registers.h"
#include "x86.h"

extern char user_copy_words[], user_copy_bytes[], user_copy_end[]; /* crossing.S */

static const char *const vector_names[] = {
    [0] = "#DE divide error", [1] = "#DB debug", [2] = "NMI", [3] = "#BP breakpoint", [4] = "#OF overflow",
    [5] = "#BR bound range", [6] = "#UD invalid opcode", [7] = "#NM no coprocessor", [8] = "#DF double fault",
    [10] = "#TS invalid TSS", [11] = "#NP segment not present", [12] = "#SS stack fault",
    [13] = "#GP general protection", [14] = "#PF page fault", [16] = "#MF x87 fault", [17] = "#AC alignment",
    [18] = "#MC machine check", [19] = "#XM SIMD fault",
};

static const char *vector_name(uint64_t vector)
{
    const uint64_t known = sizeof vector_names / sizeof vector_names[0];
    return vector < known && vector_names[vector] != NULL ? vector_names[vector] : "unexpected vector";
}

static enum trap_cause cause_of(uint64_t vector)
{
    switch (vector) {
    case VECTOR_DE: return TRAP_DIVIDE;
    case VECTOR_UD: return TRAP_ILLEGAL;
    case VECTOR_GP: return TRAP_PROTECTION;
    case VECTOR_PF: return TRAP_PAGE;
    default: return TRAP_OTHER;
    }
}

static void system_call(struct registers *r)
{
    r->rax = r->rax < SYSTEM_CALLS ? system_calls[r->rax](r->rdi, r->rsi, r->rdx) : (uint64_t)-ENOSYS;
}

/* Some KVMs (those that run guests at ring 3 of the host) answer every `int n` of ring 3 with #UD at the
 * instruction. Give it the meaning it has on hardware: through the gate when the gate may be used, else #GP with
 * the gate's selector code (SDM 6.13). True when the instruction was `int 0x80` and is done. */
static bool int_n_as_invalid_opcode(struct registers *r, uint64_t *vector, uint64_t *code)
{
    uint8_t instruction[2];
    if (!hal_copy_from_user(instruction, r->rip, sizeof instruction) || instruction[0] != 0xcd)
        return false;
    if (instruction[1] != VECTOR_SYSCALL) {
        *vector = VECTOR_GP;
        *code = instruction[1] * 8u + 2;
        return false;
    }
    r->rip += sizeof instruction;
    system_call(r);
    return true;
}

/* True when the trap happened in hal_copy_from_user(), which is then made to fail. */
static bool user_copy_failed(struct registers *r)
{
    if (r->rip != (uint64_t)user_copy_words && r->rip != (uint64_t)user_copy_bytes)
        return false;
    r->rip = (uint64_t)user_copy_end;
    r->rax = false;
    return true;
}

void trap_handle(struct registers *r)
{
    uint64_t vector = r->vector & 0xff;
    uint64_t code = r->error;
    bool from_user = (r->cs & 3) == 3;

    if (vector == VECTOR_SYSCALL) {
        system_call(r);
        return;
    }
    if (vector == VECTOR_UD && from_user && int_n_as_invalid_opcode(r, &vector, &code))
        return;
    if (vector == VECTOR_PF && !from_user && user_copy_failed(r))
        return;

    struct trap trap = {
        .cause = cause_of(vector),
        .from_user = from_user,
        .code = code,
        .address = vector == VECTOR_PF ? trap_fault_address() : 0,
        .pc = r->rip,
        .name = vector_name(vector),
    };
    if (!kernel_trap(&trap, r))
        kernel_panic_trap(&trap, r);
}

void hal_trap_resume_at(struct registers *r, uint64_t pc, uint64_t first, uint64_t second)
{
    r->rip = pc;
    r->rax = first;
    r->rdx = second;
}

void hal_registers_print(const struct registers *r)
{
    print("  rax %016lx  rbx %016lx  rcx %016lx  rdx %016lx\n", r->rax, r->rbx, r->rcx, r->rdx);
    print("  rsi %016lx  rdi %016lx  rbp %016lx  rsp %016lx\n", r->rsi, r->rdi, r->rbp, r->rsp);
    print("  r8  %016lx  r9  %016lx  r10 %016lx  r11 %016lx\n", r->r8, r->r9, r->r10, r->r11);
    print("  r12 %016lx  r13 %016lx  r14 %016lx  r15 %016lx\n", r->r12, r->r13, r->r14, r->r15);
    print("  rip %016lx  rflags %08lx  cs %02lx  ss %02lx\n", r->rip, r->rflags, r->cs & 0xffff, r->ss);
    print("  cr2 %016lx  cr3 %016lx  vector %lu  error %lx\n", trap_fault_address(), trap_page_root(), r->vector & 0xff,
          r->error);
    if ((r->cs & 3) != 0 || r->rsp < KERNEL_BASE || r->rsp >= KERNEL_BASE + hal_kernel_end() - 64)
        return; /* only the kernel's own stack is known to be there */
    print("  stack:");
    for (unsigned i = 0; i < 8; i++)
        print("%s%016lx", i == 4 ? "\n         " : " ", ((const uint64_t *)r->rsp)[i]);
    print("\n");
}
