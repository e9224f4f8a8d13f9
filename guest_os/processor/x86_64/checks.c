/* What a program can rely on of x86-64, checked by a program; and the offences that must end one. */
#include "offences.h"
#include "programs.h"

#include "hal.h"

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

void processor_checks(void)
{
    uint64_t flags;
    check("system call by int 0x80, arguments and result", int80(SYS_ECHO, 5, 70, 900) == 5 + 140 + 2700);
    check("system call number out of range by int 0x80", int80(SYSTEM_CALLS, 0, 0, 0) == (uint64_t)-ENOSYS);
    FLAGS_AFTER("syscall", flags);
    check("syscall keeps the flags", (flags & FLAGS_CARRY) && (flags & FLAGS_DIRECTION) && (flags & FLAGS_INTERRUPT));
    FLAGS_AFTER("int $0x80", flags);
    check("int 0x80 keeps the flags", (flags & FLAGS_CARRY) && (flags & FLAGS_DIRECTION) && (flags & FLAGS_INTERRUPT));
    check("syscall keeps rbx, r12 to r15 and rsp", registers_survive());
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
        return *(volatile const uint64_t *)KERNEL_ADDRESS;
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
