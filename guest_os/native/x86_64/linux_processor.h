/* What Linux's interface has of the processor: x86-64 (arch/x86/entry/syscalls/syscall_64.tbl, arch/x86/include/uapi). */
#pragma once

enum linux_call {
    LINUX_READ = 0,
    LINUX_WRITE = 1,
    LINUX_LSEEK = 8,
    LINUX_MMAP = 9,
    LINUX_MUNMAP = 11,
    LINUX_RT_SIGACTION = 13,
    LINUX_PREAD64 = 17,
    LINUX_MADVISE = 28,
    LINUX_GETPID = 39,
    LINUX_CLONE = 56,
    LINUX_EXIT = 60,
    LINUX_KILL = 62,
    LINUX_FTRUNCATE = 77,
    LINUX_GETPPID = 110,
    LINUX_PRCTL = 157,
    LINUX_SCHED_SETAFFINITY = 203,
    LINUX_SCHED_GETAFFINITY = 204,
    LINUX_OPENAT = 257,
    LINUX_PIPE2 = 293,
    LINUX_MEMFD_CREATE = 319,
};

static inline int64_t linux_call6(enum linux_call number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                                  uint64_t f)
{
    int64_t result;
    register uint64_t r10 __asm__("r10") = d;
    register uint64_t r8 __asm__("r8") = e;
    register uint64_t r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"((uint64_t)number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* struct sigaction of the system call: the restorer is where a handler returns to (start.S). */
struct linux_sigaction {
    linux_handler *handler;
    uint64_t flags;
    void (*restorer)(void);
    uint64_t mask;
};
#define SA_RESTORER 0x04000000
void linux_restorer(void);
#define LINUX_SIGACTION(handler) {handler, SA_SIGINFO | SA_RESTORER | SA_NODEFER, linux_restorer, 0}

/* asm/sigcontext.h, struct sigcontext_64: the registers, in the order of struct ucontext */
struct linux_ucontext {
    uint64_t uc_flags, uc_link;
    uint64_t stack[3];
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp, ip, flags;
};

#define DIVISION_SIGNAL SIGFPE

/* A recovery (processor.h) continues with two values in rax and rdx. */
static inline void linux_resume_at(struct linux_ucontext *context, uint64_t pc, uint64_t first, uint64_t second)
{
    context->ax = first;
    context->dx = second;
    context->ip = pc;
}
