/* The conversation with the host (docs/guest.md): devices, then ready, then one answer a command. */
#include "bench.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define MOST_WORKLOADS 96
#define COMMAND_MAX 128

static struct workload workloads[MOST_WORKLOADS];
static unsigned workload_count;
static const char *running = "";
static jmp_buf refused;

struct workload *add_workload(const char *work, const char *driver, const char *device)
{
    if (workload_count == MOST_WORKLOADS) {
        fprintf(stderr, "too many workloads\n");
        exit(1);
    }
    struct workload *added = &workloads[workload_count++];
    snprintf(added->name, sizeof added->name, driver != NULL ? "%s:%s" : "%s", work, driver);
    added->device = device != NULL ? strdup(device) : NULL;
    added->ops = 1;
    return added;
}

_Noreturn void fail(const char *what)
{
    printf("{\"error\":\"%s: %s\",\"workload\":\"%s\"}\n", what, errno != 0 ? strerror(errno) : "wrong data", running);
    longjmp(refused, 1);
}

static void ready(void)
{
    printf("{\"ready\":\"bench\",\"workloads\":[");
    for (unsigned i = 0; i < workload_count; i++)
        printf("%s\"%s\"", i != 0 ? "," : "", workloads[i].name);
    printf("]}\n");
}

static const struct workload *find(const char *name)
{
    for (unsigned i = 0; i < workload_count; i++)
        if (strcmp(workloads[i].name, name) == 0)
            return &workloads[i];
    return NULL;
}

static uint64_t do_batches(const struct workload *work, uint64_t count)
{
    uint64_t checksum = 0;
    if (work->batches != NULL) {
        work->batches(work, count, &checksum);
        return checksum;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t of_batch = work->batch(work);
        if (i != 0 && of_batch != checksum) {
            errno = 0;
            fail("two batches differ");
        }
        checksum = of_batch;
    }
    return checksum;
}

static void run(const struct workload *work, uint64_t count)
{
    running = work->name;
    errno = 0;
    if (setjmp(refused) == 0) {
        if (work->prepare != NULL)
            work->prepare(work);
        printf("{\"begin\":\"%s\"}\n", work->name);
        tcdrain(STDOUT_FILENO); /* the line is at the host before the work begins; not a terminal: nothing to wait for */
        uint64_t checksum = count != 0 ? do_batches(work, count) : 0;
        printf("{\"end\":\"%s\",\"ops\":%" PRIu64 ",\"checksum\":\"%016" PRIx64 "\"}\n", work->name, count * work->ops,
               checksum);
    }
    if (work->release != NULL)
        work->release(work);
}

static void obey(char *line)
{
    char name[COMMAND_MAX], rest;
    uint64_t count;
    if (sscanf(line, "run %100s %" SCNu64 " %c", name, &count, &rest) != 2) {
        printf("{\"error\":\"usage: run NAME BATCHES, or quit\",\"workload\":\"\"}\n");
        return;
    }
    const struct workload *work = find(name);
    if (work == NULL)
        printf("{\"error\":\"no such workload\",\"workload\":\"\"}\n");
    else
        run(work, count);
}

/* Without --devices nothing of the machine is touched: so it runs as a process of the host, and in a container. */
int main(int argc, char **argv)
{
    char line[COMMAND_MAX];
    struct termios mode;
    if (tcgetattr(STDIN_FILENO, &mode) == 0) { /* a console: no echo, no line editing, no signals */
        cfmakeraw(&mode);
        tcsetattr(STDIN_FILENO, TCSANOW, &mode);
    }
    setvbuf(stdout, NULL, _IOLBF, 1 << 14);
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "--devices") == 0) {
        add_disks();
        add_networks();
        add_consoles();
        add_clocks();
    }
    add_cpu();
    ready();
    while (fgets(line, sizeof line, stdin) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        if (strcmp(line, "quit") == 0)
            break;
        if (line[0] != '\0')
            obey(line);
    }
    return 0;
}
