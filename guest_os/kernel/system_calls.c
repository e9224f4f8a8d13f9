/* Every system call: one table, one function each. */
#include "kernel.h"

static uint64_t sys_write(uint64_t file, uint64_t text, uint64_t length)
{
    if (file != 1)
        return (uint64_t)-EINVAL;
    for (uint64_t done = 0; done < length;) {
        char part[256];
        uint64_t size = length - done < sizeof part ? length - done : sizeof part;
        if (!hal_copy_from_user(part, text + done, size))
            return (uint64_t)-EFAULT;
        hal_console_write(part, size);
        done += size;
    }
    return length;
}

static uint64_t sys_exit(uint64_t code, uint64_t b, uint64_t c)
{
    (void)b, (void)c;
    hal_user_leave(code);
}

static uint64_t sys_getppid(uint64_t a, uint64_t b, uint64_t c)
{
    (void)a, (void)b, (void)c;
    return 0;
}

static uint64_t sys_heap(uint64_t bytes, uint64_t b, uint64_t c)
{
    (void)b, (void)c;
    uint64_t address = program_heap(bytes);
    return address != 0 ? address : (uint64_t)-ENOMEM;
}

static uint64_t sys_recover(uint64_t address, uint64_t b, uint64_t c)
{
    (void)b, (void)c;
    program_recovery = address;
    return 0;
}

static uint64_t sys_echo(uint64_t a, uint64_t b, uint64_t c)
{
    return a + 2 * b + 3 * c;
}

static uint64_t sys_none(uint64_t a, uint64_t b, uint64_t c)
{
    (void)a, (void)b, (void)c;
    return (uint64_t)-ENOSYS;
}

system_call_function *const system_calls[SYSTEM_CALLS] = {
    [0] = sys_none,
    [SYS_WRITE] = sys_write,
    [2 ... SYS_EXIT - 1] = sys_none,
    [SYS_EXIT] = sys_exit,
    [SYS_EXIT + 1 ... SYS_GETPPID - 1] = sys_none,
    [SYS_GETPPID] = sys_getppid,
    [SYS_GETPPID + 1 ... SYS_HEAP - 1] = sys_none,
    [SYS_HEAP] = sys_heap,
    [SYS_RECOVER] = sys_recover,
    [SYS_ECHO] = sys_echo,
    [SYS_ECHO + 1 ... SYSTEM_CALLS - 1] = sys_none,
};
