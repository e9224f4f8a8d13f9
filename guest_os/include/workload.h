/* The workloads: what is measured under every technique, in plain C.
 *
 * The same sources are compiled for ring 3 of the tiny kernel, for its ring 0, and as an ordinary Linux process
 * (`native`). What differs between these places is behind the place_ functions below; each place implements those its
 * workloads use (kernel/place.c, programs/place.c, native/).
 *
 * The nanobenchmarks of K. Adams and O. Agesen, "A Comparison of Software and Hardware Techniques for x86
 * Virtualization", ASPLOS 2006, section 6.3, are among them, and carry the names they have there.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text.h"

struct workload {
    const char *name;
    const char *nanobenchmark;     /* the name in Adams and Agesen 2006, or NULL */
    uint64_t operations;           /* of one batch */
    const char *(*prepare)(void);  /* allocates, fills, warms; NULL, or why the workload cannot run here */
    uint64_t (*batch)(void);       /* a fixed amount of work; its checksum, the same every time and everywhere;
                                      FAILED when it could not be done */
};

#define FAILED 0

/* USER workloads are programs and run where programs run; KERNEL workloads exercise what only a kernel may do. */
#define USER_WORKLOADS(X) X(cpu) X(memory) X(call) X(syscall) X(divzero) X(pgfault)
#define KERNEL_WORKLOADS(X) \
    X(ptemod) X(ptebatch) X(cr) X(portin) X(mmio) X(ctxswitch) X(irq) X(blk_seq) X(blk_rand) X(console)

/* The workloads of this place, up to a NULL (table.c). */
extern const struct workload *const workloads[];

/* Folds a value into a checksum; the order of the values matters. */
static inline uint64_t fold(uint64_t checksum, uint64_t value)
{
    checksum = ((checksum ^ value) + 1) * 0x9e3779b97f4a7c15;
    return checksum ^ checksum >> 29;
}

/* ---- running them (run.c) ---------------------------------------------------------------------------------------- */

/* Prepares, prints the begin line, runs the batches, prints the end line or the error. */
void workload_run(const struct workload *workload, uint64_t batches);
void workload_error(const char *name, const char *reason);
/* The protocol of docs/guest.md: a ready line, then one command a line until `quit` or the end of the input. */
void workload_session(void);

/* ---- the place --------------------------------------------------------------------------------------------------- */

/* A reason that begins so says that the place cannot have such a thing at all. */
#define UNSUPPORTED "unsupported: "

void place_write(const char *text, size_t length);
/* The next line of input without its newline; false at the end of the input. */
bool place_read_line(char *line, size_t size);
/* Runs a workload that is not of this place but of one below it (a kernel's programs); false when there is none. */
bool place_run_below(const char *name, uint64_t batches);
/* The names of those, for the ready line: up to a NULL. */
extern const char *const place_names_below[];
/* Memory for one run of a workload, aligned to 2 MiB, contents undefined; NULL when there is not so much. */
void *place_memory(size_t bytes);
void place_release(void); /* takes back all that place_memory() gave */

/* USER: */
uint64_t place_null_call(void);                /* the system call that does least; its result is of no interest */
void place_recover_at(void (*address)(void));  /* traps continue there: rax = fault address or 0, rdx = trap_cause */

/* KERNEL: each prepare function returns NULL or the reason why not. The others do the operation eight times for each
 * of `eights`, so that a loop costs little beside it, and return the sum of what they read. */
const char *place_privileged_prepare(void);
uint64_t place_privileged(unsigned eights); /* writes 1 .. 8 to a privileged register and reads it back */
const char *place_port_prepare(uint8_t value);
uint64_t place_port(unsigned eights); /* reads a port that holds `value` */
const char *place_device_prepare(void);
uint64_t place_device(unsigned eights); /* reads a device register that holds 0x74726976, "virt" (virtio 1.2, 4.2.2) */

/* The two pages and the two address spaces hold these words. */
#define PLACE_WORD(i) (0x1111111111111111ull * ((i) + 1))
const char *place_window_prepare(void);
uint64_t place_window(unsigned i); /* makes a page-table entry show page i (0, 1); reads the first word through it */
#define PLACE_WINDOWS 64
const char *place_windows_prepare(void);
uint64_t place_windows(unsigned i); /* the same with so many entries at once; the sum of what is read through each */
const char *place_spaces_prepare(void);
uint64_t place_space(unsigned i); /* goes to address space i (0, 1) and reads a word there; 0 is the last */
const char *place_interrupt_prepare(void);
uint64_t place_interrupt(void); /* sends itself an interrupt; returns, once it has come, how many have */
const char *place_disk_prepare(uint64_t *size);
bool place_disk_read(uint64_t offset, void *buffer, uint32_t length);
