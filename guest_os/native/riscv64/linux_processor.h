/* What Linux's interface has of the processor: RISC-V (include/uapi/asm-generic/unistd.h, arch/riscv/include/uapi). */
#pragma once

enum linux_call {
    LINUX_FTRUNCATE = 46,
    LINUX_OPENAT = 56,
    LINUX_PIPE2 = 59,
    LINUX_LSEEK = 62,
    LINUX_READ = 63,
    LINUX_WRITE = 64,
    LINUX_PREAD64 = 67,
    LINUX_EXIT = 93,
    LINUX_SCHED_SETAFFINITY = 122,
    LINUX_SCHED_GETAFFINITY = 123,
    LINUX_KILL = 129,
    LINUX_RT_SIGACTION = 134,
    LINUX_PRCTL = 167,
    LINUX_GETPID = 172,
    LINUX_GETPPID = 173,
    LINUX_MUNMAP = 215,
    LINUX_CLONE = 220,
    LINUX_MMAP = 222,
    LINUX_MADVISE = 233,
    LINUX_MEMFD_CREATE = 279,
};

static inline int64_t linux_call6(enum linux_call number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                                  uint64_t f)
{
    register uint64_t a0 __asm__("a0") = a, a1 __asm__("a1") = b, a2 __asm__("a2") = c, a3 __asm__("a3") = d;
    register uint64_t a4 __asm__("a4") = e, a5 __asm__("a5") = f, a7 __asm__("a7") = number;
    __asm__ volatile("ecall" : "+r"(a0) : "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5), "r"(a7) : "memory");
    return (int64_t)a0;
}

/* struct sigaction of the system call: a handler returns to where the kernel says, there is no restorer. */
struct linux_sigaction {
    linux_handler *handler;
    uint64_t flags;
    uint64_t mask;
};
#define LINUX_SIGACTION(handler) {handler, SA_SIGINFO | SA_NODEFER, 0}

/* asm/ucontext.h: the mask has room for 1024 signals; then struct sigcontext, aligned as its vector registers want it:
 * pc, and x1 to x31 (asm/ptrace.h, struct user_regs_struct). */
struct linux_ucontext {
    uint64_t uc_flags, uc_link;
    uint64_t stack[3];
    uint64_t mask[16];
    struct {
        uint64_t pc, x[31];
    } registers __attribute__((aligned(16)));
};

/* What divides by zero on purpose ends in a breakpoint (processor.h). */
#define DIVISION_SIGNAL SIGTRAP

/* A recovery (processor.h) continues with two values in a0 and a1, x10 and x11. */
static inline void linux_resume_at(struct linux_ucontext *context, uint64_t pc, uint64_t first, uint64_t second)
{
    context->registers.x[10 - 1] = first;
    context->registers.x[11 - 1] = second;
    context->registers.pc = pc;
}
