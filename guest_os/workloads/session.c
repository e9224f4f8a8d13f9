/* The conversation with the host: see docs/guest.md. */
#include "workload.h"

#define COMMAND_MAX 128

static const struct workload *find(const char *name)
{
    for (unsigned i = 0; workloads[i] != NULL; i++)
        if (text_equal(workloads[i]->name, name))
            return workloads[i];
    return NULL;
}

static size_t put_name(char *text, size_t size, const char *name, bool first)
{
    return write_text(text, size, "%s\"%s\"", first ? "" : ",", name);
}

static void ready(void)
{
    char line[512];
    size_t at = write_text(line, sizeof line, "{\"ready\":\"bench\",\"workloads\":[");
    bool first = true;
    for (unsigned i = 0; place_names_below[i] != NULL; i++, first = false)
        at += put_name(line + at, sizeof line - at, place_names_below[i], first);
    for (unsigned i = 0; workloads[i] != NULL; i++, first = false)
        at += put_name(line + at, sizeof line - at, workloads[i]->name, first);
    at += write_text(line + at, sizeof line - at, "]}\n");
    place_write(line, at);
}

/* Cuts the next word off the line; the empty word at its end. */
static char *next_word(char **line)
{
    while (**line == ' ')
        (*line)++;
    char *word = *line;
    while (**line != ' ' && **line != '\0')
        (*line)++;
    if (**line == ' ')
        *(*line)++ = '\0';
    return word;
}

/* Whether a word of the host's may be repeated inside a JSON string. */
static bool printable(const char *word)
{
    for (; *word != '\0'; word++)
        if (*word < ' ' || *word > '~' || *word == '"' || *word == '\\')
            return false;
    return true;
}

static void run(char *rest)
{
    const char *name = next_word(&rest);
    const char *count = next_word(&rest);
    uint64_t batches;
    if (!printable(name))
        workload_error("", "no such workload");
    else if (!text_number(count, text_length(count), &batches) || *next_word(&rest) != '\0')
        workload_error(name, "usage: run NAME BATCHES");
    else if (find(name) != NULL)
        workload_run(find(name), batches), place_release();
    else if (!place_run_below(name, batches))
        workload_error(name, "no such workload");
}

void workload_session(void)
{
    char line[COMMAND_MAX];
    ready();
    while (place_read_line(line, sizeof line)) {
        char *rest = line;
        const char *command = next_word(&rest);
        if (text_equal(command, "quit"))
            return;
        if (text_equal(command, "run"))
            run(rest);
        else if (*command != '\0')
            workload_error("", "unknown command: run NAME BATCHES, or quit");
    }
}
