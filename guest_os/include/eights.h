/* For the workloads that measure one operation: eight of them in a row, so that a loop costs little beside them. */
#pragma once

#define EIGHT_TIMES(statement) \
    statement(1), statement(2), statement(3), statement(4), statement(5), statement(6), statement(7), statement(8)
