#include "text.h"
#include "processor.h"

static size_t put_number(char *text, uint64_t value, unsigned base, unsigned width, bool negative)
{
    char digits[24];
    size_t count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    while (count < width && count < sizeof digits - 1)
        digits[count++] = '0';
    if (negative)
        digits[count++] = '-';
    for (size_t i = 0; i < count; i++)
        text[i] = digits[count - 1 - i];
    return count;
}

size_t format_text(char *text, size_t size, const char *format, va_list arguments)
{
    size_t at = 0;
    while (*format != '\0' && at + 1 < size) {
        if (*format != '%') {
            text[at++] = *format++;
            continue;
        }
        format++;
        unsigned width = 0;
        int precision = -1;
        bool is_long = false;
        char number[24];
        const char *piece = number;
        size_t length = 1;
        if (format[0] == '.' && format[1] == '*') {
            precision = va_arg(arguments, int);
            format += 2;
        }
        while (*format >= '0' && *format <= '9')
            width = width * 10 + (unsigned)(*format++ - '0');
        if (*format == 'l') {
            is_long = true;
            format++;
        }
        switch (*format++) {
        case 's':
            piece = va_arg(arguments, const char *);
            for (length = 0; (precision < 0 || length < (size_t)precision) && piece[length] != '\0'; length++)
                ;
            break;
        case 'c':
            number[0] = (char)va_arg(arguments, int);
            break;
        case 'd': {
            int64_t value = is_long ? va_arg(arguments, int64_t) : va_arg(arguments, int);
            length = put_number(number, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, 10, width, value < 0);
            break;
        }
        case 'u':
            length = put_number(number, is_long ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned), 10, width,
                                false);
            break;
        case 'x':
            length = put_number(number, is_long ? va_arg(arguments, uint64_t) : va_arg(arguments, unsigned), 16, width,
                                false);
            break;
        default: /* %% and what is not known: the character itself */
            number[0] = format[-1];
            break;
        }
        for (size_t i = 0; i < length && at + 1 < size; i++)
            text[at++] = piece[i];
    }
    text[at] = '\0';
    return at;
}

size_t write_text(char *text, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t length = format_text(text, size, format, arguments);
    va_end(arguments);
    return length;
}

bool text_equal(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

size_t text_length(const char *text)
{
    size_t length = 0;
    while (text[length] != '\0')
        length++;
    return length;
}

static int digit_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
        return (c | 0x20) - 'a' + 10;
    return 16;
}

bool text_number(const char *text, size_t length, uint64_t *number)
{
    uint64_t base = 10, value = 0;
    unsigned shift = 0;
    if (length > 2 && text[0] == '0' && (text[1] | 0x20) == 'x') {
        base = 16;
        text += 2;
        length -= 2;
    } else if (length > 1) {
        switch (text[length - 1]) {
        case 'K': shift = 10; break;
        case 'M': shift = 20; break;
        case 'G': shift = 30; break;
        }
        if (shift != 0)
            length--;
    }
    if (length == 0)
        return false;
    for (size_t i = 0; i < length; i++) {
        uint64_t digit = (uint64_t)digit_value(text[i]);
        if (digit >= base || value > (UINT64_MAX - digit) / base)
            return false;
        value = value * base + digit;
    }
    if (value > UINT64_MAX >> shift)
        return false;
    *number = value << shift;
    return true;
}

/* The compiler may call these two by itself. */
void *memcpy(void *to, const void *from, size_t size)
{
    processor_copy(to, from, size);
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    processor_fill(to, byte, size);
    return to;
}
