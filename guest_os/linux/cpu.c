/* Work that needs nothing but the processor: a generator of random numbers fed into a table, integers only. */
#include "bench.h"

#define ROUNDS 20000u
#define TABLE 4096u /* words: 32 KiB */

static uint64_t table[TABLE];

static uint64_t mix(const struct workload *work)
{
    uint64_t state = 88172645463325252u, total = 0; /* xorshift64 and its seed: Marsaglia 2003 */
    (void)work;
    for (unsigned i = 0; i < TABLE; i++)
        table[i] = i;
    for (unsigned i = 0; i < ROUNDS; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        uint64_t *slot = &table[state % TABLE];
        *slot = (*slot + state) * 6364136223846793005u;
        total ^= *slot;
    }
    return total;
}

void add_cpu(void) { add_workload("cpu", NULL, NULL)->batch = mix; }
