/* Time: what it costs to read each clocksource, and how late timers are. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define CLOCKSOURCE "/sys/devices/system/clocksource/clocksource0/"
#define READS 500u
#define SLEEPS 10u
#define SLEEP_NS 1000000 /* 1 ms: toolkit/compare/linux subtracts it */
#define TIMER_NS 20000   /* soon: what is measured is how long setting it, its interrupt and waking up take */

static char before[NAME_MAX_LENGTH];
static int timer = -1;

static void read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    text[0] = '\0';
    if (file == NULL)
        return;
    if (fgets(text, (int)size, file) == NULL)
        text[0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    fclose(file);
}

static void choose(const char *source)
{
    char now[NAME_MAX_LENGTH];
    int file = open(CLOCKSOURCE "current_clocksource", O_WRONLY | O_CLOEXEC);
    bool written = file >= 0 && write(file, source, strlen(source)) == (ssize_t)strlen(source);
    if (file >= 0)
        close(file);
    read_text(CLOCKSOURCE "current_clocksource", now, sizeof now);
    if (!written || strcmp(now, source) != 0)
        fail("the kernel does not take this clocksource");
}

static void prepare_source(const struct workload *work)
{
    read_text(CLOCKSOURCE "current_clocksource", before, sizeof before);
    choose(work->device);
}

static void release_source(const struct workload *work)
{
    (void)work;
    int file = open(CLOCKSOURCE "current_clocksource", O_WRONLY | O_CLOEXEC);
    if (file >= 0 && write(file, before, strlen(before)) < 0)
        errno = 0; /* the next workload's own `choose` would say so */
    if (file >= 0)
        close(file);
}

static uint64_t read_clock(const struct workload *work)
{
    struct timespec last = {0}, now;
    (void)work;
    for (unsigned i = 0; i < READS; i++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec < last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec)) {
            errno = ERANGE;
            fail("the clock went backwards");
        }
        last = now;
    }
    return READS;
}

static void prepare_sleep(const struct workload *work)
{
    (void)work;
    if (prctl(PR_SET_TIMERSLACK, 1) != 0)
        fail("PR_SET_TIMERSLACK");
}

static uint64_t sleep_often(const struct workload *work)
{
    (void)work;
    for (unsigned i = 0; i < SLEEPS; i++) {
        struct timespec time = {0, SLEEP_NS};
        if (nanosleep(&time, NULL) != 0)
            fail("nanosleep");
    }
    return SLEEPS;
}

static void prepare_timer(const struct workload *work)
{
    (void)work;
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (timer < 0)
        fail("timerfd_create");
}

static void release_timer(const struct workload *work)
{
    (void)work;
    if (timer >= 0)
        close(timer);
    timer = -1;
}

static uint64_t expire_often(const struct workload *work)
{
    (void)work;
    for (unsigned i = 0; i < SLEEPS; i++) {
        struct itimerspec soon = {.it_value.tv_nsec = TIMER_NS};
        uint64_t expirations;
        if (timerfd_settime(timer, 0, &soon, NULL) != 0 || read(timer, &expirations, sizeof expirations) < 0)
            fail("timer");
    }
    return SLEEPS;
}

void add_clocks(void)
{
    char line[256];
    read_text(CLOCKSOURCE "available_clocksource", line, sizeof line);
    for (char *name = strtok(line, " "); name != NULL; name = strtok(NULL, " ")) {
        struct workload *work = add_workload("clock", name, name);
        work->prepare = prepare_source;
        work->batch = read_clock;
        work->release = release_source;
        work->ops = READS;
    }
    struct workload *sleep = add_workload("sleep", NULL, NULL);
    sleep->prepare = prepare_sleep;
    sleep->batch = sleep_often;
    sleep->ops = SLEEPS;
    struct workload *expiry = add_workload("timer", NULL, NULL);
    expiry->prepare = prepare_timer;
    expiry->batch = expire_often;
    expiry->release = release_timer;
    expiry->ops = SLEEPS;
}
