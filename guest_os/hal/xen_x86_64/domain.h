/* What the files of this layer share. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "hypercall.h"
#include "x86.h"

/* What the domain builder left (xen.h, "Start-of-day memory layout"); never written. */
extern const struct start_info *start_info;
/* Mapped over a page of the image (start.S) by the start of day (start.c). */
extern struct shared_info shared_info;

/* Machine address of what the kernel sees at this address, which is in RAM. */
uint64_t machine_address(const void *kernel_address);
/* The page with this machine frame number among the `count` pages from `first` on; NULL when it is none of them. */
void *page_of_frame(uint64_t mfn, const void *first, uint64_t count);

/* Calls `function` for the events of a port, which is thereby unmasked; they come while events are let in, with
 * further ones masked. */
void event_handle(uint32_t port, void (*function)(void *), void *context);
/* Takes a pending event of a port back; false when there was none. */
bool event_clear(uint32_t port);
void event_send(uint32_t port);
/* Masks every port: the start of day (events.c). */
void events_start(void);
/* A port on this CPU for events it sends to itself. Panics when Xen refuses. */
uint32_t event_bind_ipi(void);
uint32_t event_bind_virq(uint32_t virq);
