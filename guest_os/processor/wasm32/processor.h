/* What the shared sources need of the processor in its own words: WebAssembly, a machine that is only a specification
 * (WebAssembly Core Specification 2.0). */
#pragma once
#include <stddef.h>

/* memory.copy and memory.fill (4.4.7), one instruction each. */
static inline void processor_copy(void *to, const void *from, size_t size)
{
    __builtin_memcpy(to, from, size);
}

static inline void processor_fill(void *to, int byte, size_t size)
{
    __builtin_memset(to, byte, size);
}
