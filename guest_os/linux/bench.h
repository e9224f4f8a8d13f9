/* The bench program for a whole Linux: the protocol of docs/guest.md, with workloads on the devices Linux drives.
 *
 * A workload on a device is called WORK:DRIVER, after the kernel driver that sysfs says is bound to it: one that the
 * kernel does not drive, or drives with something else, is not in the list, so it cannot be measured by mistake. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NAME_MAX_LENGTH 64

/* One workload. `prepare` comes before the begin line, `release` after the end line. Each ends the run by `fail`. */
struct workload {
    char name[NAME_MAX_LENGTH];
    const char *device; /* what it is done on: a node in /dev, a network interface, a clocksource */
    void (*prepare)(const struct workload *);
    uint64_t (*batch)(const struct workload *); /* one batch's checksum: the same for every batch */
    void (*batches)(const struct workload *, uint64_t count, uint64_t *checksum); /* in place of `batch`: all of them */
    void (*release)(const struct workload *);
    unsigned ops; /* operations in a batch */
};

/* Adds a workload to the list; `driver` may be NULL. The caller fills in the rest. */
struct workload *add_workload(const char *work, const char *driver, const char *device);

/* Ends the run under way: the host is told `what` and errno's text, and the session goes on. */
_Noreturn void fail(const char *what);

/* Each file's workloads, added for the devices that are there; devices are told to the host by `tell_device`. */
void add_disks(void);
void add_networks(void);
void add_consoles(void);
void add_clocks(void);
void add_cpu(void);

/* What sysfs knows of a device, walking up from a directory. */
struct device {
    char drivers[4][NAME_MAX_LENGTH]; /* the nearest first; empty ones at the end */
    char pci[NAME_MAX_LENGTH];        /* DOMAIN:BUS:SLOT.FUNCTION of the function it sits on, or empty */
    char id[NAME_MAX_LENGTH];         /* VENDOR:DEVICE of that function */
};
bool look_up(const char *sysfs, struct device *);
void tell_device(const char *kind, const char *name, const struct device *);

/* The driver that makes the device what it is: not `sd`, which drives every disk behind libata. */
const char *driver_of(const struct device *);
/* Lists a directory: the next name that is not hidden, or NULL; `state` starts as NULL. */
const char *next_entry(const char *directory, void **state);
