/* Which workloads this place has: all of them in a Linux process, else those of its level. */
#include "workload.h"

#define DECLARE(name) extern const struct workload workload_##name;
#define REFER(name) &workload_##name,
USER_WORKLOADS(DECLARE)
KERNEL_WORKLOADS(DECLARE)

const struct workload *const workloads[] = {
#if defined(NATIVE)
    USER_WORKLOADS(REFER) KERNEL_WORKLOADS(REFER)
#elif defined(PROGRAM)
    USER_WORKLOADS(REFER)
#else
    KERNEL_WORKLOADS(REFER)
#endif
    NULL,
};
