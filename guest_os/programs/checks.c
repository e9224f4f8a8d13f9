/* What a program can rely on, checked by a program. */
#include "programs.h"

#include "hal.h"
#include "offences.h"
#include "processor.h"
#include "workload.h"

static uint64_t failed;

void check(const char *what, bool ok)
{
    char line[160];
    place_write(line, write_text(line, sizeof line, "{\"check\":\"user: %s\",\"ok\":%s}\n", what, ok ? "true" : "false"));
    failed += !ok;
}

void checks_recovery(void); /* a label */

__attribute__((noinline)) static uint64_t read_recovering(uint64_t from, uint64_t *cause)
{
    uint64_t address = 0;
    READ_ABSENT(checks_recovery, from, address, *cause);
    return address;
}

uint64_t checks_main(uint64_t number)
{
    (void)number;
    uint64_t cause = 0;
    failed = 0;
    check("system call, arguments and result", system_call(SYS_ECHO, 5, 70, 900) == 5 + 140 + 2700);
    check("unknown system call", system_call(SYSTEM_CALLS - 1, 0, 0, 0) == (uint64_t)-ENOSYS);
    check("system call number out of range", system_call(UINT64_MAX, 0, 0, 0) == (uint64_t)-ENOSYS);
    processor_checks();
    check("write of an unmapped buffer", system_call(SYS_WRITE, 1, 0x1000000000, 1) == (uint64_t)-EFAULT);
    check("write of kernel memory", system_call(SYS_WRITE, 1, KERNEL_ADDRESS, 1) == (uint64_t)-EFAULT);
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
          read_recovering(KERNEL_ADDRESS, &cause) == KERNEL_ADDRESS && cause == TRAP_PAGE);
    return failed;
}

/* Runs without a system call for so many rounds, after one; the kernel looks whether interrupts came through. */
uint64_t spin_main(uint64_t number)
{
    place_null_call();
    for (uint64_t i = 0; i < number; i++)
        __asm__ volatile("" : : "r"(i));
    return 0;
}
