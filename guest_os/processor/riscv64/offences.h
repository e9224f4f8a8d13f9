/* What the program `offend` does, by its number, and what must end it: cause and error code. RISC-V does not tell
 * whether a page was there, so no code has ACCESS_PRESENT; what is not permitted is an illegal instruction. */
#pragma once

#define OFFENCE_TABLE(X)                                                                             \
    X(DIVIDE, "user: a breakpoint, as after a test for zero, ends a program", TRAP_DIVIDE, 0)        \
    X(ILLEGAL, "user: an illegal instruction ends a program", TRAP_ILLEGAL, 0)                       \
    X(SUPERVISOR_RETURN, "user: sret ends a program", TRAP_ILLEGAL, 0)                               \
    X(CSR, "user: writing satp ends a program", TRAP_ILLEGAL, 0)                                     \
    X(READ_KERNEL, "user: reading kernel memory ends a program", TRAP_PAGE, ACCESS_USER)             \
    X(WRITE_TEXT, "user: writing its own text ends a program", TRAP_PAGE, ACCESS_WRITE | ACCESS_USER) \
    X(RUN_DATA, "user: running its data ends a program", TRAP_PAGE, ACCESS_USER | ACCESS_FETCH)      \
    X(NOT_CANONICAL, "user: an address that is none ends a program", TRAP_PAGE, ACCESS_USER)         \
    X(DISABLE_INTERRUPTS, "user: clearing sstatus.SIE ends a program", TRAP_ILLEGAL, 0)

#define KERNEL_ADDRESS 0xffffffff80000000 /* of the kernel's image */

#define OFFENCE_NAME(name, what, cause, code) OFFENCE_##name,
enum offence { OFFENCE_TABLE(OFFENCE_NAME) OFFENCES };

/* No offence may end otherwise here. */
static inline int offence_excused(enum offence offence, unsigned long code)
{
    (void)offence, (void)code;
    return 0;
}

/* What traps in the kernel, each at one operand; physical 0x08000000 is nothing on this machine: an access fault. */
#define KERNEL_TRAPS(X)                                          \
    X(TRAP_DIVIDE, "ebreak", 0ull)                               \
    X(TRAP_ILLEGAL, "unimp", 0ull)                               \
    X(TRAP_PROTECTION, "ld a0, 0(%0)", 0xffffffffc8000000)       \
    X(TRAP_PAGE, "ld a0, 0(%0)", UNMAPPED)
#define KERNEL_TRAP(label, instruction, operand)                     \
    __asm__ volatile(instruction "\n\t.globl " label "\n" label ":"  \
                     :                                               \
                     : "r"(operand)                                  \
                     : "a0", "a1", "memory")
