/* Reads from the disk whose every word tells where it is (disk.py): in order, 1 MiB at a time, round and round; and
 * 4 KiB at places that look random. The first word of each 4 KiB that was read is checked. */
#include "workload.h"

#define SEQUENTIAL (1u << 20)
#define RANDOM 4096u
#define RANDOM_READS 8
#define CHECK_EVERY 4096u
#define CHUNKS_MAX 4096 /* 4 GiB: what lies beyond is not read */

static uint8_t *buffer;
static uint64_t chunks;              /* whole MiB on the disk */
static uint64_t position;            /* of the next sequential read, in MiB */
static uint64_t sums[CHUNKS_MAX];    /* what the words checked in each MiB add up to */
static uint64_t random;

static uint64_t pattern(uint64_t offset)
{
    return (offset * 0x9e3779b97f4a7c15) ^ 0x76746b;
}

static const char *prepare(void)
{
    uint64_t size;
    const char *reason = place_disk_prepare(&size);
    if (reason != NULL)
        return reason;
    chunks = size / SEQUENTIAL < CHUNKS_MAX ? size / SEQUENTIAL : CHUNKS_MAX;
    if (chunks == 0)
        return "the disk is smaller than 1 MiB";
    buffer = place_memory(SEQUENTIAL);
    if (buffer == NULL)
        return "no memory for 1 MiB";
    position = 0;
    random = 88172645463325252;
    return NULL;
}

/* The sums are computed beforehand: between the markers one addition a page remains, since each instruction of a
 * kernel may be interpreted. */
static const char *prepare_sequential(void)
{
    const char *reason = prepare();
    for (uint64_t chunk = 0; reason == NULL && chunk < chunks; chunk++) {
        sums[chunk] = 0;
        for (uint64_t at = 0; at < SEQUENTIAL; at += CHECK_EVERY)
            sums[chunk] += pattern(chunk * SEQUENTIAL + at);
    }
    return reason;
}

static uint64_t batch_sequential(void)
{
    uint64_t sum = 0;
    if (!place_disk_read(position * SEQUENTIAL, buffer, SEQUENTIAL))
        return FAILED;
    for (const uint8_t *at = buffer; at < buffer + SEQUENTIAL; at += 8 * CHECK_EVERY) {
#define ADD(i) sum += *(const uint64_t *)(at + (i) * CHECK_EVERY)
        ADD(0), ADD(1), ADD(2), ADD(3), ADD(4), ADD(5), ADD(6), ADD(7);
    }
    uint64_t difference = sum - sums[position];
    position = position + 1 < chunks ? position + 1 : 0;
    return fold(SEQUENTIAL, difference);
}

static uint64_t batch_random(void)
{
    uint64_t difference = 0;
    for (unsigned i = 0; i < RANDOM_READS; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17; /* Marsaglia 2003, xorshift64 */
        uint64_t offset = random % (chunks * (SEQUENTIAL / RANDOM)) * RANDOM;
        if (!place_disk_read(offset, buffer, RANDOM))
            return FAILED;
        difference |= *(const uint64_t *)buffer ^ pattern(offset);
    }
    return fold(RANDOM, difference);
}

const struct workload workload_blk_seq = {
    .name = "blk-seq", .operations = 1, .prepare = prepare_sequential, .batch = batch_sequential};
const struct workload workload_blk_rand = {
    .name = "blk-rand", .operations = RANDOM_READS, .prepare = prepare, .batch = batch_random};
