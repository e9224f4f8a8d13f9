/* One measured run: prepared and warmed before the begin line, so that between the two lines there is nothing but the
 * batches. Time is taken by the host, between the lines' ends. */
#include "workload.h"

#define LINE_MAX 192

void workload_error(const char *name, const char *reason)
{
    char line[LINE_MAX];
    place_write(line, write_text(line, sizeof line, "{\"error\":\"%s\",\"workload\":\"%s\"}\n", reason, name));
}

void workload_run(const struct workload *workload, uint64_t batches)
{
    char line[LINE_MAX];
    const char *reason = workload->prepare != NULL ? workload->prepare() : NULL;
    if (reason != NULL) {
        workload_error(workload->name, reason);
        return;
    }
    uint64_t expected = workload->batch(); /* warms caches and translations; says what the others must give */
    if (expected == FAILED) {
        workload_error(workload->name, "the work could not be done");
        return;
    }
    place_write(line, write_text(line, sizeof line, "{\"begin\":\"%s\"}\n", workload->name));
    for (uint64_t i = 0; i < batches; i++) {
        if (workload->batch() != expected) {
            workload_error(workload->name, "two batches of the same work gave different checksums");
            return;
        }
    }
    place_write(line, write_text(line, sizeof line, "{\"end\":\"%s\",\"checksum\":\"%016lx\",\"ops\":%lu}\n",
                                 workload->name, expected, batches * workload->operations));
}
