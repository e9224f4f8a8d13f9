/* Between the files of the native program. */
#pragma once
#include "linux.h"
#include "workload.h"

_Noreturn void native_main(const uint64_t *stack);
extern const char *native_disk_path; /* --disk, or NULL */
