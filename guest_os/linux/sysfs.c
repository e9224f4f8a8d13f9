/* What sysfs says of a device: every driver from it up to its bus, and the PCI function it sits on. */
#include "bench.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool read_word(const char *directory, const char *file, char *word, size_t size)
{
    char path[PATH_MAX + 32];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    FILE *stream = fopen(path, "r");
    if (stream == NULL)
        return false;
    bool found = fgets(word, (int)size, stream) != NULL;
    fclose(stream);
    if (found)
        word[strcspn(word, "\n")] = '\0';
    return found;
}

/* The last component of what a link points to; false where there is no such link. */
static bool link_name(const char *directory, const char *link, char *name)
{
    char path[PATH_MAX + 32], target[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, link);
    ssize_t length = readlink(path, target, sizeof target - 1);
    if (length <= 0)
        return false;
    target[length] = '\0';
    const char *last = strrchr(target, '/');
    snprintf(name, NAME_MAX_LENGTH, "%s", last != NULL ? last + 1 : target);
    return true;
}

bool look_up(const char *sysfs, struct device *device)
{
    char path[PATH_MAX], name[NAME_MAX_LENGTH], vendor[16], model[16];
    unsigned drivers = 0;
    memset(device, 0, sizeof *device);
    if (realpath(sysfs, path) == NULL)
        return false;
    for (char *end; strncmp(path, "/sys/devices/", 13) == 0; *end = '\0') {
        if (drivers < 4 && link_name(path, "driver", name))
            memcpy(device->drivers[drivers++], name, sizeof name);
        end = strrchr(path, '/');
        if (device->pci[0] == '\0' && link_name(path, "subsystem", name) && strcmp(name, "pci") == 0) {
            snprintf(device->pci, sizeof device->pci, "%.60s", end + 1);
            if (read_word(path, "vendor", vendor, sizeof vendor) && read_word(path, "device", model, sizeof model))
                snprintf(device->id, sizeof device->id, "%s:%s", vendor + 2, model + 2); /* without 0x */
        }
    }
    return drivers != 0;
}

const char *driver_of(const struct device *device)
{
    return device->drivers[strcmp(device->drivers[0], "sd") == 0];
}

void tell_device(const char *kind, const char *name, const struct device *device)
{
    printf("{\"device\":\"%s\",\"name\":\"%s\",\"driver\":\"%s\",\"pci\":\"%s\",\"id\":\"%s\"}\n", kind, name,
           driver_of(device), device->pci, device->id);
}

const char *next_entry(const char *directory, void **state)
{
    DIR *stream = *state;
    if (stream == NULL && (stream = opendir(directory)) == NULL)
        return NULL;
    *state = stream;
    for (struct dirent *entry; (entry = readdir(stream)) != NULL;)
        if (entry->d_name[0] != '.')
            return entry->d_name;
    closedir(stream);
    *state = NULL;
    return NULL;
}
