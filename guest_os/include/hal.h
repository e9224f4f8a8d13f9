/* The hardware layer: the only way the kernel touches the machine.
 *
 * hal/x86_64/ implements it on bare x86-64, hal/xen_x86_64/ as a paravirtual domain of Xen; what these two share is in
 * hal/x86/. Nothing in kernel/, drivers/, guests/ knows which one it runs on. Addresses called `physical` are the
 * guest's. Unless stated otherwise a function is called with interrupts disabled, which is how the kernel runs.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- start and end ------------------------------------------------------------------------------------------- */

struct memory_range {
    uint64_t base; /* physical, bytes */
    uint64_t size; /* bytes */
};

struct boot_info {
    const char *protocol;     /* "pvh", "linux64" or "xen-pv" */
    const char *command_line; /* NUL-terminated, never NULL */
    uint64_t memory_bytes;    /* sum of the usable ranges */
    unsigned range_count;
    struct memory_range range[16]; /* usable RAM as the loader told it */
};

/* What the loader told; read on first use, so that a guest that never asks does not pay for it. */
const struct boot_info *hal_boot_info(void);

/* Ends the machine with this exit code (0 = success). */
_Noreturn void hal_exit(unsigned code);
/* Tells the machine that the guest has crashed, and ends it. */
_Noreturn void hal_crash(void);
/* Resets the machine. */
_Noreturn void hal_reset(void);
/* Stops this CPU for good: interrupts disabled, then halted. */
_Noreturn void hal_halt(void);
/* Makes the CPU shut down by a fault nobody can handle. */
_Noreturn void hal_triple_fault(void);

/* ---- console ------------------------------------------------------------------------------------------------- */

void hal_console_start(void);
void hal_console_write(const char *text, size_t length);
/* The next byte received, or -1 when there is none. Call hal_console_listen() once before. */
int hal_console_read(void);
void hal_console_listen(void);

/* ---- interrupts ---------------------------------------------------------------------------------------------- */

/* Lets interrupts in and sleeps until one has been handled; returns with interrupts disabled again. There is no
 * moment between letting them in and sleeping, so a wake-up that comes after the caller's last look is not lost. */
void hal_wait(void);
/* Handlers run with interrupts disabled, on the stack of whatever they interrupt. `line` is the machine's number of
 * the interrupt (GSI); edge triggered. False when there is no such line. */
bool hal_irq_handle(unsigned line, void (*handler)(void *), void *context);
/* Sends an interrupt to this CPU itself; `handler` runs once it is let in. */
void hal_self_interrupt_handle(void (*handler)(void *), void *context);
void hal_self_interrupt(void);

/* ---- timer --------------------------------------------------------------------------------------------------- */

/* Starts the periodic tick; hal_ticks() counts from then on. */
void hal_timer_start(unsigned hertz);
void hal_timer_stop(void);
uint64_t hal_ticks(void);

/* ---- devices ------------------------------------------------------------------------------------------------- */

/* Why the machine has no memory-mapped devices at all; NULL when it can have some. */
const char *hal_device_absence(void);
/* Where the kernel sees the registers at this physical address; NULL when it cannot reach `size` bytes there. */
volatile void *hal_device_registers(uint64_t physical, size_t size);
/* Orders the stores a device must see in order (virtio 1.2, 2.7.13.3: a full barrier where a read follows). */
void hal_memory_barrier(void);
/* For the workloads, eight operations for each of `eights`; the sum of what was read. */
uint64_t hal_privileged_register(unsigned eights); /* writes 1 .. 8 and reads back */
/* NULL, or why the machine has no I/O port that keeps `value`. */
const char *hal_port_prepare(uint8_t value);
uint64_t hal_port_read(unsigned eights);

/* ---- memory and address spaces -------------------------------------------------------------------------------- */

enum page_rights {
    PAGE_WRITE = 1,
    PAGE_USER = 2,
    PAGE_EXECUTE = 4,
};

#define PAGE_SIZE 4096ull
#define LARGE_PAGE_SIZE (2ull << 20)

struct space; /* an address space: the root of a tree of page tables; every one has the kernel half */

void *hal_kernel_address(uint64_t physical); /* of RAM; NULL above what the kernel can map */
uint64_t hal_physical(const void *kernel_address);
uint64_t hal_kernel_end(void);   /* physical: first byte after the image, page-aligned */
uint64_t hal_kernel_reach(void); /* physical: first byte hal_kernel_address() cannot give */
/* Makes RAM above hal_kernel_end() usable at its kernel address, for good; false when it cannot be. */
bool hal_kernel_open(uint64_t physical, uint64_t size);

struct space *hal_space_create(void); /* empty user half; NULL when out of table pages */
/* Maps one page (`size` is PAGE_SIZE or LARGE_PAGE_SIZE, addresses aligned to it); false when out of table pages. */
bool hal_space_map(struct space *space, uint64_t address, uint64_t physical, uint64_t size, unsigned rights);
/* Takes a mapping of either size away; the address is not in use. */
void hal_space_unmap(struct space *space, uint64_t address);
/* The page-table entry of an address mapped with PAGE_SIZE; NULL when there is none. */
uint64_t *hal_space_entry(struct space *space, uint64_t address);
/* Changes the entry that maps `address` in the current space, and forgets the old translation. */
void hal_page_change(uint64_t *entry, uint64_t address, uint64_t physical, unsigned rights);
/* The same for a list, in whatever way is cheapest for many. */
struct page_change {
    uint64_t *entry;
    uint64_t address, physical;
};
void hal_pages_change(const struct page_change *changes, unsigned count, unsigned rights);
void hal_space_switch(struct space *space); /* NULL: the kernel's own */

/* ---- traps and user mode -------------------------------------------------------------------------------------- */

enum trap_cause {
    TRAP_DIVIDE,
    TRAP_ILLEGAL,    /* an instruction that does not exist */
    TRAP_PROTECTION, /* not permitted */
    TRAP_PAGE,       /* .address: where, .access: why */
    TRAP_OTHER,
};

enum page_access { ACCESS_PRESENT = 1, ACCESS_WRITE = 2, ACCESS_USER = 4, ACCESS_FETCH = 16 };

struct registers; /* of the interrupted code; the layer's own */

struct trap {
    enum trap_cause cause;
    bool from_user;
    uint64_t code;    /* the hardware's error code */
    uint64_t address; /* TRAP_PAGE: the address that faulted; else 0 */
    uint64_t pc;
    const char *name; /* the hardware's name of the trap */
};

/* The kernel's answer to a trap: true when the interrupted code shall go on (kernel/traps.c). A layer need not ask for a
 * program's division by zero or page fault when `program_recovery` (program.h) is set: it may go on there itself. */
bool kernel_trap(const struct trap *trap, struct registers *registers);
/* Continues the interrupted code elsewhere, with two results in its registers (x86-64: rax, rdx). */
void hal_trap_resume_at(struct registers *registers, uint64_t pc, uint64_t first, uint64_t second);
void hal_registers_print(const struct registers *registers);

/* Runs code at user level in the current address space until user_leave(); returns what that was given. */
uint64_t hal_user_run(uint64_t pc, uint64_t stack, uint64_t argument);
_Noreturn void hal_user_leave(uint64_t result);
/* Copies between kernel and user memory; false when the user address is not a mapped user address. */
bool hal_copy_from_user(void *to, uint64_t from, size_t size);

/* ---- processors ------------------------------------------------------------------------------------------------ */

/* Starts every other CPU; each counts itself in hal_cpus() and then sleeps. Returns without waiting for them to come.
 * The timer must be running, at 100 Hz or less. */
void hal_cpus_start(void);
unsigned hal_cpus(void); /* CPUs that run or ran kernel code, this one included */
