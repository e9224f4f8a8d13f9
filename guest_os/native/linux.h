/* Linux without a C library: the system calls, flags and structures the native program uses, with the kernel's names
 * and values (include/uapi of Linux). Numbers and what the processor decides are in x86_64/ and
 * riscv64/linux_processor.h. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define AT_FDCWD (-100)
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
#define SIGTRAP 5
#define SIGFPE 8
#define SIGKILL 9
#define SIGUSR1 10
#define SIGSEGV 11
#define SIGCHLD 17
#define SA_SIGINFO 4
#define SA_NODEFER 0x40000000

/* include/uapi/asm-generic/siginfo.h: what a fault fills in */
struct linux_siginfo {
    int32_t si_signo, si_errno, si_code, padding;
    uint64_t si_addr;
};

struct linux_ucontext;
typedef void linux_handler(int signal, struct linux_siginfo *info, struct linux_ucontext *context);

#include "linux_processor.h"

static inline int64_t linux_call(enum linux_call number, uint64_t a, uint64_t b, uint64_t c)
{
    return linux_call6(number, a, b, c, 0, 0, 0);
}

/* The handler may be interrupted by its own signal. */
void linux_handle(int signal, linux_handler *handler);
