/* Runs a user program that checks what a program can rely on. */
#include "kernel.h"

int guest_main(void)
{
    struct program_end end = program_run("checks", 0);
    if (!end.started)
        panic("no memory for a program");
    if (end.killed)
        print("killed by %s at %lx, address %lx\n", end.trap.name, end.trap.pc, end.trap.address);
    return end.killed ? 1 : (int)end.code;
}
