/* Memory: a pointer chase through 8 MiB in an order no prefetcher guesses, and copies that walk over 4 MiB. */
#include "workload.h"

struct node {
    struct node *next;
    uint64_t order;       /* how many steps from the first node */
    uint64_t padding[6];  /* one node a cache line */
};
#define NODES 131072 /* 8 MiB */
#define SOURCE_BYTES (4u << 20)
#define COPY_BYTES (16u << 10)
#define CHECK_EVERY 64 /* words of a copy: eight a page */
#define STEPS 256
#define TOTAL (NODES * sizeof(struct node) + SOURCE_BYTES + 2 * COPY_BYTES)

static struct node *nodes, *current;
static uint64_t *source, *target;
static uint64_t source_at; /* in words */

static uint64_t source_word(uint64_t i)
{
    return i * 0x9e3779b97f4a7c15 + 1;
}

static const char *prepare(void)
{
    nodes = place_memory(TOTAL);
    if (nodes == NULL)
        return "no memory for 13 MiB";
    /* Sattolo's algorithm: a random permutation that is one cycle. */
    uint64_t random = 88172645463325252;
    for (uint64_t i = 0; i < NODES; i++)
        nodes[i].next = &nodes[i];
    for (uint64_t i = NODES - 1; i > 0; i--) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17; /* Marsaglia 2003, xorshift64 */
        uint64_t j = random % i;
        struct node *swap = nodes[i].next;
        nodes[i].next = nodes[j].next;
        nodes[j].next = swap;
    }
    current = nodes;
    for (uint64_t order = 0; order < NODES; order++, current = current->next)
        current->order = order;
    source = (uint64_t *)(nodes + NODES);
    target = source + SOURCE_BYTES / 8;
    /* Only what will be checked, for where each instruction is interpreted; every page of it is there then. */
    for (uint64_t i = 0; i < SOURCE_BYTES / 8; i += CHECK_EVERY)
        source[i] = source_word(i);
    source_at = 0;
    return NULL;
}

static uint64_t batch(void)
{
    uint64_t first = current->order, checksum = 0;
    for (unsigned i = 0; i < STEPS; i++)
        current = current->next;
    checksum = fold(checksum, (current->order - first) % NODES); /* STEPS, unless a pointer went wrong */

    const uint64_t *from = source + source_at;
    const unsigned half = COPY_BYTES / 8;
    for (unsigned i = 0; i < half; i++)
        ((volatile uint64_t *)target)[i] = from[i];
    memcpy(target + half, from + half, COPY_BYTES);
    for (unsigned i = 0; i < 2 * half; i += CHECK_EVERY)
        checksum = fold(checksum, target[i] - source_word(source_at + i)); /* zero, wherever the copy is */
    source_at = (source_at + 2 * half) % (SOURCE_BYTES / 8);
    return checksum;
}

const struct workload workload_memory = {.name = "memory", .operations = 1, .prepare = prepare, .batch = batch};
