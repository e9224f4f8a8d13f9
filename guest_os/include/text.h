/* Text without a C library: shared by the kernel, the user programs and the native program. */
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* printf's %s %c %d %u %x, %ld %lu %lx, a width with leading zeros (%016lx) and %.*s; nothing else. Returns the
 * length of the text, which never exceeds size - 1; the text is cut there and always NUL-terminated. */
size_t format_text(char *text, size_t size, const char *format, va_list arguments);
size_t write_text(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

bool text_equal(const char *a, const char *b);
size_t text_length(const char *text);
/* Reads a number, decimal or 0x hexadecimal, with an optional suffix K, M or G; the whole of `length` characters must
 * be it. False when it is not one or does not fit 64 bits. */
bool text_number(const char *text, size_t length, uint64_t *number);

void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
