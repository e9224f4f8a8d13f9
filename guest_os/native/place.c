/* A Linux process as a place for workloads: text, memory and the disk (include/workload.h). */
#include "native.h"

const char *const place_names_below[] = {NULL};
const char *native_disk_path;

void place_write(const char *text, size_t length)
{
    while (length > 0) {
        int64_t written = linux_call(LINUX_WRITE, 1, (uint64_t)text, length);
        if (written <= 0)
            linux_call(LINUX_EXIT, 1, 0, 0); /* nobody listens any more */
        text += written;
        length -= (size_t)written;
    }
}

bool place_read_line(char *line, size_t size)
{
    size_t length = 0;
    char byte;
    while (linux_call(LINUX_READ, 0, (uint64_t)&byte, 1) == 1) {
        if (byte == '\n') {
            line[length] = '\0';
            return true;
        }
        if (length + 1 < size)
            line[length++] = byte;
    }
    return false;
}

bool place_run_below(const char *name, uint64_t batches)
{
    (void)name, (void)batches;
    return false;
}

#define ALIGNMENT (2ull << 20)
static struct {
    uint64_t start, size;
} taken[4];
static unsigned taken_count;

void *place_memory(size_t bytes)
{
    uint64_t size = bytes + ALIGNMENT; /* room to align the start, so that large pages can be used */
    int64_t start = linux_call6(LINUX_MMAP, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (uint64_t)-1, 0);
    if (start < 0 || taken_count == sizeof taken / sizeof taken[0])
        return NULL;
    linux_call(LINUX_MADVISE, (uint64_t)start, size, MADV_HUGEPAGE);
    taken[taken_count].start = (uint64_t)start;
    taken[taken_count++].size = size;
    return (void *)(((uint64_t)start + ALIGNMENT - 1) & ~(ALIGNMENT - 1));
}

void place_release(void)
{
    while (taken_count > 0) {
        taken_count--;
        linux_call(LINUX_MUNMAP, taken[taken_count].start, taken[taken_count].size, 0);
    }
}

/* The disk is a file; it stays open. */
static int64_t disk = -1;

const char *place_disk_prepare(uint64_t *size)
{
    if (native_disk_path == NULL)
        return "no disk: give --disk FILE";
    if (disk < 0)
        disk = linux_call(LINUX_OPENAT, (uint64_t)AT_FDCWD, (uint64_t)native_disk_path, O_RDONLY);
    if (disk < 0)
        return "the disk cannot be opened";
    *size = (uint64_t)linux_call(LINUX_LSEEK, (uint64_t)disk, 0, SEEK_END);
    return NULL;
}

bool place_disk_read(uint64_t offset, void *buffer, uint32_t length)
{
    return linux_call6(LINUX_PREAD64, (uint64_t)disk, (uint64_t)buffer, length, offset, 0, 0) == length;
}
