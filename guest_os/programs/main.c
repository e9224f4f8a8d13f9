/* Every program there is: the workloads of user level, and what the tests run. */
#include "programs.h"

#include "workload.h"

static const struct {
    const char *name;
    uint64_t (*main)(uint64_t number);
} programs[] = {
    {"checks", checks_main},
    {"offend", offend_main},
    {"spin", spin_main},
};

/* From start.S; the result is the program's exit code. */
uint64_t program_main(const struct program_arguments *arguments)
{
    for (unsigned i = 0; i < sizeof programs / sizeof programs[0]; i++)
        if (text_equal(programs[i].name, arguments->name))
            return programs[i].main(arguments->number);
    for (unsigned i = 0; workloads[i] != NULL; i++) {
        if (text_equal(workloads[i]->name, arguments->name)) {
            workload_run(workloads[i], arguments->number);
            return 0;
        }
    }
    return ENOENT;
}
