/* The workloads as an ordinary Linux process: the `native` row, 1.0 of the table. Speaks the same protocol as the
 * bench guest, on standard input and output. Usage: native [--disk FILE] */
#include "native.h"

_Noreturn static void leave(unsigned code)
{
    for (;;)
        linux_call(LINUX_EXIT, code, 0, 0);
}

_Noreturn void native_main(const uint64_t *stack)
{
    uint64_t argc = stack[0];
    const char *const *argv = (const char *const *)(stack + 1);
    if (argc == 3 && text_equal(argv[1], "--disk")) {
        native_disk_path = argv[2];
    } else if (argc != 1) {
        static const char usage[] = "usage: native [--disk FILE]\n";
        linux_call(LINUX_WRITE, 2, (uint64_t)usage, sizeof usage - 1);
        leave(2);
    }
    workload_session();
    leave(0);
}
