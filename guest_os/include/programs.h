/* The user programs' own header. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "program.h"
#include "system_calls.h"

uint64_t system_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c); /* programs/place.c */

uint64_t program_main(const struct program_arguments *arguments);
uint64_t checks_main(uint64_t number); /* programs/checks.c */
uint64_t spin_main(uint64_t number);
void check(const char *what, bool ok);

/* The processor's part (processor/). */
void processor_checks(void);
uint64_t offend_main(uint64_t number);
