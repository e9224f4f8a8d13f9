/* What a program can rely on of RISC-V, checked by a program; and the offences that must end one. */
#include "offences.h"
#include "programs.h"

#include "hal.h"

/* Whether s0 .. s11, ra, gp, tp and sp come back from a system call as they went in; s0 and ra keep the others' sums. */
static bool registers_survive(void)
{
    uint64_t difference;
    __asm__ volatile("mv t0, sp\n\t"
                     "addi sp, sp, -16\n\t"
                     "sd ra, 0(sp)\n\t"
                     "sd s0, 8(sp)\n\t"
                     "li ra, 0x101; li s0, 0x202; li s1, 0x303; li s2, 0x404; li s3, 0x505; li s4, 0x606\n\t"
                     "li s5, 0x707; li s6, 0x808; li s7, 0x909; li s8, 0xa0a; li s9, 0xb0b; li s10, 0xc0c\n\t"
                     "mv s11, sp\n\t"
                     "li a7, %1\n\t"
                     "ecall\n\t"
                     "xor s11, s11, sp\n\t"
                     "xori ra, ra, 0x101; xori s0, s0, 0x202; xori s1, s1, 0x303; xori s2, s2, 0x404\n\t"
                     "xori s3, s3, 0x505; xori s4, s4, 0x606; xori s5, s5, 0x707\n\t"
                     "li t0, 0x808; xor s6, s6, t0; li t0, 0x909; xor s7, s7, t0; li t0, 0xa0a; xor s8, s8, t0\n\t"
                     "li t0, 0xb0b; xor s9, s9, t0; li t0, 0xc0c; xor s10, s10, t0\n\t"
                     "or %0, a0, ra; or %0, %0, s0; or %0, %0, s1; or %0, %0, s2; or %0, %0, s3; or %0, %0, s4\n\t"
                     "or %0, %0, s5; or %0, %0, s6; or %0, %0, s7; or %0, %0, s8; or %0, %0, s9; or %0, %0, s10\n\t"
                     "or %0, %0, s11\n\t"
                     "ld ra, 0(sp)\n\t"
                     "ld s0, 8(sp)\n\t"
                     "addi sp, sp, 16"
                     : "=&r"(difference)
                     : "i"(SYS_GETPPID)
                     : "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "a0", "a1", "a2", "a3", "a4",
                       "a5", "a6", "a7", "t0", "t1", "t2", "t3", "t4", "t5", "memory");
    return difference == 0;
}

void processor_checks(void)
{
    check("ecall keeps ra, s0 to s10 and sp", registers_survive());
}

/* Each of these must end the program; what ended it is checked by the kernel (guests/selftest.c). */
uint64_t offend_main(uint64_t number)
{
    switch ((enum offence)number) {
    case OFFENCE_DIVIDE:
        __asm__ volatile("ebreak");
        break;
    case OFFENCE_ILLEGAL:
        __asm__ volatile("unimp");
        break;
    case OFFENCE_SUPERVISOR_RETURN:
        __asm__ volatile("sret");
        break;
    case OFFENCE_CSR:
        __asm__ volatile("csrw satp, zero");
        break;
    case OFFENCE_READ_KERNEL:
        return *(volatile const uint64_t *)KERNEL_ADDRESS;
    case OFFENCE_WRITE_TEXT:
        *(volatile uint8_t *)USER_TEXT = 0;
        break;
    case OFFENCE_RUN_DATA:
        ((void (*)(void))USER_DATA)();
        break;
    case OFFENCE_NOT_CANONICAL:
        return *(volatile const uint64_t *)0xdead00000000;
    case OFFENCE_DISABLE_INTERRUPTS:
        __asm__ volatile("csrci sstatus, 2");
        break;
    case OFFENCES:
        break;
    }
    return 0;
}
