/* A program of the tiny kernel as a place for workloads (include/workload.h). */
#include "processor.h"
#include "program.h"
#include "system_calls.h"
#include "workload.h"

uint64_t system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c)
{
    return processor_system_call(number, a, b, c);
}

void place_write(const char *text, size_t length)
{
    system_call(SYS_WRITE, 1, (uint64_t)text, length);
}

void *place_memory(size_t bytes)
{
    uint64_t address = system_call(SYS_HEAP, bytes, 0, 0);
    return address < USER_HEAP_END ? (void *)address : NULL;
}

uint64_t place_null_call(void)
{
    return system_call(SYS_GETPPID, 0, 0, 0);
}

void place_recover_at(void (*address)(void))
{
    system_call(SYS_RECOVER, (uint64_t)address, 0, 0);
}
