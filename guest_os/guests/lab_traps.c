/* Runs programs that trap, and tells what its handlers saw: for `vtk lab run interrupt-path`. */
#include "../hal/xen_x86_64/domain.h"
#include "kernel.h"
#include "offences.h"

extern char trap_stubs[], system_call_entry[]; /* hal/xen_x86_64/entry.S */

#define STUB_SIZE 16

static void run(const char *name, uint64_t number)
{
    print("{\"begin\":\"%s %lu\"}\n", name, number);
    struct program_end end = program_run(name, number);
    if (!end.started)
        panic("no memory for a program");
    print("{\"end\":\"%s %lu\",\"trap\":\"%s\",\"pc\":%lu,\"address\":%lu}\n", name, number,
          end.killed ? end.trap.name : "", end.trap.pc, end.trap.address);
}

int guest_main(void)
{
    print("{\"handlers\":{\"divide\":%lu,\"opcode\":%lu,\"page\":%lu,\"syscall\":%lu}}\n",
          (uint64_t)trap_stubs + VECTOR_DE * STUB_SIZE, (uint64_t)trap_stubs + VECTOR_UD * STUB_SIZE,
          (uint64_t)trap_stubs + VECTOR_PF * STUB_SIZE, (uint64_t)system_call_entry);
    run("offend", OFFENCE_DIVIDE);
    run("offend", OFFENCE_ILLEGAL);
    run("offend", OFFENCE_READ_KERNEL);
    run("offend", OFFENCE_WRITE_TEXT);
    run("spin", 0);
    return 0;
}
