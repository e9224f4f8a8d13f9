/* The end of a machine whose kernel cannot go on: say why, show the registers, tell the machine. */
#include "kernel.h"

_Noreturn void panic(const char *format, ...)
{
    char text[PRINT_MAX];
    va_list arguments;
    va_start(arguments, format);
    format_text(text, sizeof text, format, arguments);
    va_end(arguments);
    print("panic: %s\n", text);
    hal_crash();
}

_Noreturn void kernel_panic_trap(const struct trap *trap, const struct registers *registers)
{
    /* A trap while this prints would come back here for ever. */
    static bool dying;
    if (dying)
        hal_crash();
    dying = true;
    print("panic: %s in %s code at %016lx, error %lx, address %016lx\n", trap->name,
          trap->from_user ? "user" : "kernel", trap->pc, trap->code, trap->address);
    hal_registers_print(registers);
    hal_crash();
}
