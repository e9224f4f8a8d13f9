/* What the program `offend` does, by its number, and what must end it: cause and error code. */
#pragma once

#define OFFENCE_TABLE(X)                                                                                                \
    X(DIVIDE, "user: division by zero ends a program", TRAP_DIVIDE, 0)                                                  \
    X(ILLEGAL, "user: an invalid opcode ends a program", TRAP_ILLEGAL, 0)                                               \
    X(HALT, "user: hlt ends a program", TRAP_PROTECTION, 0)                                                             \
    X(GATE, "user: int 0x81 ends a program, with the gate in the error code", TRAP_PROTECTION, 0x81 * 8 + 2)            \
    X(READ_KERNEL, "user: reading kernel memory ends a program", TRAP_PAGE, ACCESS_PRESENT | ACCESS_USER)               \
    X(WRITE_TEXT, "user: writing its own text ends a program", TRAP_PAGE, ACCESS_PRESENT | ACCESS_WRITE | ACCESS_USER)  \
    X(RUN_DATA, "user: running its data ends a program", TRAP_PAGE, ACCESS_PRESENT | ACCESS_USER | ACCESS_FETCH)        \
    X(PORT, "user: a port write ends a program", TRAP_PROTECTION, 0)                                                    \
    X(DISABLE_INTERRUPTS, "user: cli ends a program", TRAP_PROTECTION, 0)

#define KERNEL_ADDRESS 0xffffffff80101000 /* of the kernel's image, in every layer */

#define OFFENCE_NAME(name, what, cause, code) OFFENCE_##name,
enum offence { OFFENCE_TABLE(OFFENCE_NAME) OFFENCES };

/* Whether an offence ended as it may also end; `code` is the error code it ended with. */
static inline int offence_excused(enum offence offence, unsigned long code)
{
    if (offence == OFFENCE_GATE)
        return code == 0x81 * 16 + 2; /* QEMU's TCG (7.2) gives the gate's byte offset, SDM 6.13 eight times its number */
    /* A domain's programs have page tables of their own, without the kernel half: the page is not present there. */
    return offence == OFFENCE_READ_KERNEL && code == 4;
}

/* What traps in the kernel, each at one operand. */
#define KERNEL_TRAPS(X)                                        \
    X(TRAP_DIVIDE, "div %%rcx", 0ull)                          \
    X(TRAP_ILLEGAL, "ud2", 0ull)                               \
    X(TRAP_PROTECTION, "mov (%%rcx), %%rax", 0xdead00000000)   \
    X(TRAP_PAGE, "mov (%%rcx), %%rax", UNMAPPED)
#define KERNEL_TRAP(label, instruction, operand)                        \
    __asm__ volatile(instruction "\n\t.globl " label "\n" label ":"     \
                     :                                                  \
                     : "c"(operand)                                     \
                     : "rax", "rdx", "memory", "cc")
