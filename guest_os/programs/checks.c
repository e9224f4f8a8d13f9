/* What a program can rely on, checked by a program; and the offences that must end one. */
#include "programs.h"

#include "hal.h"
#include "workload.h"

static uint64_t failed;

static void check(const char *what, bool ok)
{
    char line[160];
    place_write(line, write_text(line, sizeof line, "{\"check\":\"user: %s\",\"ok\":%s}\n", what, ok ? "true" : "false"));
    failed += !ok;
}

static uint64_t int80(uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    __asm__ volatile("int $0x80"
                     : "+a"(number), "+D"(a), "+S"(b), "+d"(c)
                     :
                     : "rcx", "r8", "r9", "r10", "r11", "memory");
    return number;
}

#define FLAGS_CARRY 0x1
#define FLAGS_INTERRUPT 0x200
#define FLAGS_DIRECTION 0x400

/* The flags after a system call made with carry and direction set. */
#define FLAGS_AFTER(instruction, flags)                                                              \
    do {                                                                                             \
        uint64_t number = SYS_GETPPID;                                                               \
        __asm__ volatile("std; stc; " instruction "; pushf; pop %0; cld"                              \
                         : "=r"(flags), "+a"(number)                                                 \
                         :                                                                           \
                         : "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");     \
    } while (0)

/* Whether rbx, rbp (by the frame), r12 .. r15 and rsp come back from a system call as they went in. */
static bool registers_survive(void)
{
    uint64_t number = SYS_GETPPID;
    __asm__ volatile("mov $0x1234, %%rbx; mov $0x2345, %%r12; mov $0x3456, %%r13; mov $0x4567, %%r14\n\t"
                     "mov %%rsp, %%r15; syscall\n\t"
                     "xor %%rsp, %%r15; xor $0x1234, %%rbx; xor $0x2345, %%r12; xor $0x3456, %%r13\n\t"
                     "xor $0x4567, %%r14; or %%rbx, %%r15; or %%r12, %%r15; or %%r13, %%r15; or %%r14, %%r15\n\t"
                     "mov %%r15, %%rax"
                     : "+a"(number)
                     :
                     : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory");
    return number == 0;
}

void checks_recovery(void); /* a label */

__attribute__((noinline)) static uint64_t read_recovering(uint64_t from, uint64_t *cause)
{
    uint64_t address = 0;
    __asm__ volatile("mov (%2), %0\n\t"
                     ".globl checks_recovery\n"
                     "checks_recovery:"
                     : "+a"(address), "=d"(*cause)
                     : "r"(from)
                     : "memory");
    return address;
}

uint64_t checks_main(uint64_t number)
{
    (void)number;
    uint64_t flags, cause;
    failed = 0;
    check("system call by syscall, arguments and result", system_call(SYS_ECHO, 5, 70, 900) == 5 + 140 + 2700);
    check("system call by int 0x80, arguments and result", int80(SYS_ECHO, 5, 70, 900) == 5 + 140 + 2700);
    check("unknown system call by syscall", system_call(SYSTEM_CALLS - 1, 0, 0, 0) == (uint64_t)-ENOSYS);
    check("system call number out of range by syscall", system_call(UINT64_MAX, 0, 0, 0) == (uint64_t)-ENOSYS);
    check("system call number out of range by int 0x80", int80(SYSTEM_CALLS, 0, 0, 0) == (uint64_t)-ENOSYS);
    FLAGS_AFTER("syscall", flags);
    check("syscall keeps the flags", (flags & FLAGS_CARRY) && (flags & FLAGS_DIRECTION) && (flags & FLAGS_INTERRUPT));
    FLAGS_AFTER("int $0x80", flags);
    check("int 0x80 keeps the flags", (flags & FLAGS_CARRY) && (flags & FLAGS_DIRECTION) && (flags & FLAGS_INTERRUPT));
    check("syscall keeps rbx, r12 to r15 and rsp", registers_survive());
    check("write of an unmapped buffer", system_call(SYS_WRITE, 1, 0x1000000000, 1) == (uint64_t)-EFAULT);
    check("write of kernel memory", system_call(SYS_WRITE, 1, 0xffffffff80100000, 1) == (uint64_t)-EFAULT);
    check("write whose end wraps", system_call(SYS_WRITE, 1, UINT64_MAX, 16) == (uint64_t)-EFAULT);

    uint64_t *heap = place_memory(1);
    check("heap memory", heap != NULL && (uint64_t)heap % LARGE_PAGE_SIZE == 0);
    if (heap != NULL) {
        heap[0] = 1, heap[LARGE_PAGE_SIZE / 8 - 1] = 2;
        check("heap memory holds what is written", heap[0] == 1 && heap[LARGE_PAGE_SIZE / 8 - 1] == 2);
    }
    check("heap request that cannot be met", (int64_t)system_call(SYS_HEAP, UINT64_MAX, 0, 0) == -ENOMEM);

    place_recover_at(checks_recovery);
    check("recovery from a page fault, with its address",
          read_recovering(0x1000000008, &cause) == 0x1000000008 && cause == TRAP_PAGE);
    check("recovery from a read of kernel memory",
          read_recovering(0xffffffff80101000, &cause) == 0xffffffff80101000 && cause == TRAP_PAGE);
    return failed;
}

/* Each of these must end the program; what ended it is checked by the kernel (guests/selftest.c). */
uint64_t offend_main(uint64_t number)
{
    switch ((enum offence)number) {
    case OFFENCE_DIVIDE:
        __asm__ volatile("xor %%ecx, %%ecx; div %%ecx" : : : "eax", "ecx", "edx");
        break;
    case OFFENCE_ILLEGAL:
        __asm__ volatile("ud2");
        break;
    case OFFENCE_HALT:
        __asm__ volatile("hlt");
        break;
    case OFFENCE_GATE:
        __asm__ volatile("int $0x81");
        break;
    case OFFENCE_READ_KERNEL:
        return *(volatile const uint64_t *)0xffffffff80101000;
    case OFFENCE_WRITE_TEXT:
        *(volatile uint8_t *)USER_TEXT = 0;
        break;
    case OFFENCE_RUN_DATA:
        ((void (*)(void))USER_DATA)();
        break;
    case OFFENCE_PORT:
        __asm__ volatile("outb %%al, $0xf4" : : "a"(0x55));
        break;
    case OFFENCE_DISABLE_INTERRUPTS:
        __asm__ volatile("cli");
        break;
    case OFFENCES:
        break;
    }
    return 0;
}

/* Runs without a system call for so many rounds, after one; the kernel looks whether interrupts came through. */
uint64_t spin_main(uint64_t number)
{
    place_null_call();
    for (uint64_t i = 0; i < number; i++)
        __asm__ volatile("" : : "r"(i));
    return 0;
}
