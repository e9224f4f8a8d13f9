#include "kernel.h"

const char *command_line_value(const char *name, unsigned n, size_t *length)
{
    const char *word = hal_boot_info()->command_line;
    size_t name_length = text_length(name);
    while (*word != '\0') {
        size_t word_length = 0, same = 0;
        while (word[word_length] != '\0' && word[word_length] != ' ')
            word_length++;
        while (same < name_length && word[same] == name[same])
            same++;
        if (same == name_length && word[same] == '=' && n-- == 0) {
            *length = word_length - same - 1;
            return word + same + 1;
        }
        word += word_length;
        while (*word == ' ')
            word++;
    }
    return NULL;
}

uint64_t command_line_number(const char *name, uint64_t otherwise)
{
    size_t length;
    uint64_t number;
    const char *value = command_line_value(name, 0, &length);
    return value != NULL && text_number(value, length, &number) ? number : otherwise;
}
