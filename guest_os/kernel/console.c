#include "kernel.h"

void print(const char *format, ...)
{
    char text[PRINT_MAX + 1];
    va_list arguments;
    va_start(arguments, format);
    size_t length = format_text(text, sizeof text, format, arguments);
    va_end(arguments);
    hal_console_write(text, length);
}

void console_read_line(char *line, size_t size)
{
    size_t length = 0;
    for (;;) {
        int byte = hal_console_read();
        if (byte < 0) {
            hal_wait();
            continue;
        }
        if (byte == '\n' || byte == '\r')
            break;
        if (length + 1 < size)
            line[length++] = (char)byte;
    }
    line[length] = '\0';
}
