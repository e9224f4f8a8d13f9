/* Disks: whole-device reads and writes with O_DIRECT, which leaves Linux's page cache out. */
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (1u << 20)
#define BLOCK 4096u
#define SECTOR 512u
#define SEQUENTIAL_OPS 8u  /* of 1 MiB */
#define RANDOM_OPS 32u     /* of 4 KiB, over all jobs */
#define MOST_JOBS 8u
#define SPAN (16u * MIB) /* what is read; what is written lies behind it, so that reads keep finding the same */

static int disk = -1;
static unsigned char *buffers[MOST_JOBS];

/* One word of each sector: a sector from elsewhere changes it, and adding them up costs little beside the reading. */
static uint64_t sum(const unsigned char *data, size_t size)
{
    uint64_t total = 0, word;
    for (size_t at = 0; at < size; at += SECTOR) {
        memcpy(&word, data + at, sizeof word);
        total += word;
    }
    return total;
}

static void open_disk(const struct workload *work, int flags)
{
    char path[NAME_MAX_LENGTH + 8];
    snprintf(path, sizeof path, "/dev/%s", work->device);
    disk = open(path, flags | O_DIRECT | O_CLOEXEC);
    if (disk < 0)
        fail(path);
    for (unsigned job = 0; job < MOST_JOBS; job++)
        if (buffers[job] == NULL && (errno = posix_memalign((void **)&buffers[job], BLOCK, MIB)) != 0)
            fail("memory");
}

static void prepare_read(const struct workload *work) { open_disk(work, O_RDONLY); }

static void prepare_write(const struct workload *work)
{
    open_disk(work, O_WRONLY);
    for (unsigned at = 0; at < MIB; at++)
        buffers[0][at] = (unsigned char)(at * 31 + (at >> 8));
}

static void release(const struct workload *work)
{
    (void)work;
    if (disk >= 0)
        close(disk);
    disk = -1;
}

static uint64_t read_sequentially(const struct workload *work)
{
    uint64_t total = 0;
    (void)work;
    for (unsigned op = 0; op < SEQUENTIAL_OPS; op++) {
        if (pread(disk, buffers[0], MIB, (off_t)op * MIB) != MIB)
            fail("read");
        total += sum(buffers[0], MIB);
    }
    return total;
}

static uint64_t write_sequentially(const struct workload *work)
{
    uint64_t total = 0;
    (void)work;
    for (unsigned op = 0; op < SEQUENTIAL_OPS; op++) {
        if (pwrite(disk, buffers[0], MIB, SPAN + (off_t)op * MIB) != MIB)
            fail("write");
        total += sum(buffers[0], MIB);
    }
    return total;
}

static uint64_t flush(const struct workload *work)
{
    (void)work;
    if (pwrite(disk, buffers[0], BLOCK, SPAN) != BLOCK || fdatasync(disk) != 0)
        fail("write and flush");
    return sum(buffers[0], BLOCK);
}

/* A job's share of every batch: places by a linear congruential generator (Knuth, MMIX) that starts anew each batch. */
struct job {
    pthread_t thread;
    unsigned number, ops;
    uint64_t batches, checksum;
    int error;
};

static void *do_job(void *argument)
{
    struct job *job = argument;
    for (uint64_t batch = 0; batch < job->batches && job->error == 0; batch++) {
        uint64_t state = job->number * 7919u + 1, total = 0;
        for (unsigned op = 0; op < job->ops; op++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            off_t at = (off_t)((state >> 33) % (SPAN / BLOCK) * BLOCK);
            ssize_t got = pread(disk, buffers[job->number], BLOCK, at);
            if (got != BLOCK)
                job->error = got < 0 ? errno : EIO;
            total += sum(buffers[job->number], BLOCK);
        }
        if (batch != 0 && total != job->checksum)
            job->error = EILSEQ;
        job->checksum = total;
    }
    return NULL;
}

static void read_randomly(uint64_t batches, unsigned jobs, uint64_t *checksum)
{
    struct job all[MOST_JOBS] = {0};
    unsigned started = 1;
    for (unsigned number = 0; number < jobs; number++)
        all[number] = (struct job){.number = number, .ops = RANDOM_OPS / jobs, .batches = batches};
    while (started < jobs && pthread_create(&all[started].thread, NULL, do_job, &all[started]) == 0)
        started++;
    do_job(&all[0]); /* the first job is this thread's own */
    for (unsigned number = 1; number < started; number++)
        pthread_join(all[number].thread, NULL);
    errno = started < jobs ? EAGAIN : 0;
    for (unsigned number = 0; number < jobs; number++) {
        *checksum += all[number].checksum;
        if (all[number].error != 0)
            errno = all[number].error;
    }
    if (errno != 0)
        fail("random read");
}

static void one_job(const struct workload *work, uint64_t batches, uint64_t *checksum)
{
    (void)work;
    read_randomly(batches, 1, checksum);
}

static void eight_jobs(const struct workload *work, uint64_t batches, uint64_t *checksum)
{
    (void)work;
    read_randomly(batches, MOST_JOBS, checksum);
}

void add_disks(void)
{
    static const struct workload kinds[] = {
        {"disk-read", .prepare = prepare_read, .batch = read_sequentially, .ops = SEQUENTIAL_OPS},
        {"disk-write", .prepare = prepare_write, .batch = write_sequentially, .ops = SEQUENTIAL_OPS},
        {"disk-flush", .prepare = prepare_write, .batch = flush, .ops = 1},
        {"disk-random", .prepare = prepare_read, .batches = one_job, .ops = RANDOM_OPS},
        {"disk-random8", .prepare = prepare_read, .batches = eight_jobs, .ops = RANDOM_OPS},
    };
    void *listing = NULL;
    struct device device;
    for (const char *name; (name = next_entry("/sys/block", &listing)) != NULL;) {
        char path[NAME_MAX_LENGTH + 32];
        snprintf(path, sizeof path, "/sys/block/%.48s/device", name);
        if (!look_up(path, &device) || device.drivers[0][0] == '\0')
            continue; /* loop devices and the like */
        tell_device("disk", name, &device);
        for (unsigned kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
            struct workload *work = add_workload(kinds[kind].name, driver_of(&device), name);
            work->prepare = kinds[kind].prepare;
            work->batch = kinds[kind].batch;
            work->batches = kinds[kind].batches;
            work->release = release;
            work->ops = kinds[kind].ops;
        }
    }
}
