/* Runs the workloads as the host asks for them over the console. */
#include "kernel.h"
#include "workload.h"

int guest_main(void)
{
    hal_console_listen();
    workload_session();
    return 0;
}
