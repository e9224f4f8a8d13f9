/* The kernel proper: what guests/, drivers/ and the hardware layer may call. Nothing here knows the processor. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hal.h"
#include "text.h"

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

/* ---- start (main.c) ------------------------------------------------------------------------------------------ */

/* Called by the hardware layer's entry; `argument` is the physical address of what the loader left. */
_Noreturn void kernel_start(unsigned protocol, uint64_t argument);
extern unsigned kernel_boot_protocol;
extern uint64_t kernel_boot_argument;

/* A guest is one file in guests/ that defines this; what it returns is the machine's exit code. */
int guest_main(void);

/* ---- console (console.c) -------------------------------------------------------------------------------------- */

/* Formats (text.h) and writes; at most PRINT_MAX bytes a call. */
#define PRINT_MAX 512
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Waits for a line and stores it without its newline, NUL-terminated; what does not fit is dropped. */
void console_read_line(char *line, size_t size);

/* ---- the end (panic.c) ----------------------------------------------------------------------------------------- */

_Noreturn void panic(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void kernel_panic_trap(const struct trap *trap, const struct registers *registers);

/* ---- memory (frames.c) ----------------------------------------------------------------------------------------- */

/* Physical memory above the image, given out from the bottom; `size` is a power of two, and the alignment. 0 when
 * there is no more. What it holds is not cleared. */
uint64_t frames_take(uint64_t size);
/* Everything taken after frames_mark() is given back by frames_release(mark). */
uint64_t frames_mark(void);
void frames_release(uint64_t mark);

/* ---- command line (command_line.c) ------------------------------------------------------------------------------ */

/* The text after `name=` of the n-th (from 0) word that starts so, and its length; NULL when there is none. */
const char *command_line_value(const char *name, unsigned n, size_t *length);
/* The value as a number, or `otherwise` when absent or malformed. */
uint64_t command_line_number(const char *name, uint64_t otherwise);

/* ---- system calls (system_calls.c) -------------------------------------------------------------------------------- */

#include "system_calls.h"
typedef uint64_t system_call_function(uint64_t a, uint64_t b, uint64_t c);
extern system_call_function *const system_calls[SYSTEM_CALLS];

/* ---- traps (traps.c) ----------------------------------------------------------------------------------------------- */

/* Where the kernel's own code goes on after a trap (0: a trap in the kernel is a panic), and what the last there was. */
extern uint64_t kernel_recovery;
extern struct trap kernel_last_trap;

/* ---- user programs (programs.c) -------------------------------------------------------------------------------------- */

#include "program.h"
