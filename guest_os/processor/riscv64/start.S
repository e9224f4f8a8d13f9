/* Where a program begins: a0 = its arguments (include/program.h), sp = the end of its data page. */
#include "system_calls.h"

    .section .text.start, "ax"
    .globl _start
_start:
    lla  t0, bss_start                  # the variables, which the kernel left as they were: words, both ends aligned
    lla  t1, bss_end
1:  bgeu t0, t1, 2f
    sd   zero, 0(t0)                    # cleared here and not by the kernel, as in the other layers
    addi t0, t0, 8
    j    1b
2:  andi sp, sp, -16                    # the ABI's alignment at a call
    call program_main                   # a0 is its argument, and then its result: the exit code
    li   a7, SYS_EXIT
    ecall                               # does not return
    unimp
