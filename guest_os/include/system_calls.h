/* The system calls: number in rax, arguments in rdi, rsi, rdx, result in rax (negative: -errno). As a function call
 * does, a system call may change rcx, rdx, rsi, rdi, r8 .. r11. Where Linux has the same call the number is Linux's
 * (arch/x86/entry/syscalls/syscall_64.tbl); ours start at 500, where Linux has none. */
#pragma once

#define SYS_WRITE 1      /* (1, text, length) -> length: to the console */
#define SYS_EXIT 60      /* (code): ends the program */
#define SYS_GETPPID 110  /* () -> 0: does nothing; the null system call */
#define SYS_HEAP 500     /* (bytes) -> address of so much memory, aligned to 2 MiB; its contents are not cleared */
#define SYS_RECOVER 501  /* (address): where the program goes on after a trap; rax = fault address, rdx = cause */
#define SYS_ECHO 502     /* (a, b, c) -> a + 2b + 3c: proves that arguments arrive */
#define SYSTEM_CALLS 512

#define ENOENT 2
#define ENOMEM 12
#define EFAULT 14
#define EINVAL 22
#define ENOSYS 38
