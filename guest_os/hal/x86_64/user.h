/* Between paging.c and user.c: what user mode needs of every address space. */
#pragma once
#include <stdbool.h>

struct space;

/* Maps the system call gate (user.S) where LSTAR points. */
bool hal_gate_map(struct space *space);
/* Makes PTE_NX a permission instead of a reserved bit. */
void hal_no_execute_enable(void);
