/* Linux without a C library: the system calls, flags and structures `native` uses, with the kernel's names and values
 * (include/uapi and arch/x86/include/uapi of Linux). */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum linux_call { /* arch/x86/entry/syscalls/syscall_64.tbl */
    LINUX_READ = 0,
    LINUX_WRITE = 1,
    LINUX_OPEN = 2,
    LINUX_LSEEK = 8,
    LINUX_MMAP = 9,
    LINUX_MUNMAP = 11,
    LINUX_RT_SIGACTION = 13,
    LINUX_PREAD64 = 17,
    LINUX_PIPE = 22,
    LINUX_MADVISE = 28,
    LINUX_GETPID = 39,
    LINUX_FORK = 57,
    LINUX_EXIT = 60,
    LINUX_KILL = 62,
    LINUX_FTRUNCATE = 77,
    LINUX_GETPPID = 110,
    LINUX_PRCTL = 157,
    LINUX_SCHED_SETAFFINITY = 203,
    LINUX_SCHED_GETAFFINITY = 204,
    LINUX_MEMFD_CREATE = 319,
};

#define O_RDONLY 0
#define SEEK_END 2
#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 0x01
#define MAP_PRIVATE 0x02
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define MAP_POPULATE 0x8000
#define MADV_HUGEPAGE 14
#define PR_SET_PDEATHSIG 1
#define SIGFPE 8
#define SIGKILL 9
#define SIGUSR1 10
#define SIGSEGV 11
#define SA_SIGINFO 4
#define SA_RESTORER 0x04000000
#define SA_NODEFER 0x40000000

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

static inline int64_t linux_call(enum linux_call number, uint64_t a, uint64_t b, uint64_t c)
{
    return linux_call6(number, a, b, c, 0, 0, 0);
}

/* arch/x86/include/uapi/asm/sigcontext.h, struct sigcontext_64: the registers, in the order of struct ucontext */
struct linux_ucontext {
    uint64_t uc_flags, uc_link;
    uint64_t stack[3];
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp, ip, flags;
};

/* include/uapi/asm-generic/siginfo.h: what a fault fills in */
struct linux_siginfo {
    int32_t si_signo, si_errno, si_code, padding;
    uint64_t si_addr;
};

typedef void linux_handler(int signal, struct linux_siginfo *info, struct linux_ucontext *context);
/* rt_sigaction with the restorer the kernel wants; the handler may be interrupted by its own signal. */
void linux_handle(int signal, linux_handler *handler);
