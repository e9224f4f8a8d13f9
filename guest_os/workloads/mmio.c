/* A device register read: virtio-mmio's MagicValue. */
#include "workload.h"

#define EIGHTS 2

static uint64_t batch(void)
{
    return fold(0, place_device(EIGHTS));
}

const struct workload workload_mmio = {
    .name = "mmio", .operations = EIGHTS * 8, .prepare = place_device_prepare, .batch = batch};
