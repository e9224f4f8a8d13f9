/* A WebAssembly module as a place for workloads (include/workload.h): text, memory, the null call and the disk. */
#include "wasi.h"
#include "workload.h"

#define DISK "disk" /* in the directory the module is given */
#define WASM_PAGE 65536ul

const char *const place_names_below[] = {NULL};

/* What a runtime calls (WASI preview 1, a "command"). */
__attribute__((export_name("_start"))) void start(void)
{
    workload_session();
}

void place_write(const char *text, size_t length)
{
    while (length > 0) {
        struct wasi_iovec piece = {text, length};
        size_t done;
        if (wasi_fd_write(WASI_STDOUT, &piece, 1, &done) != 0)
            wasi_proc_exit(1); /* nobody listens any more */
        text += done;
        length -= done;
    }
}

bool place_read_line(char *line, size_t size)
{
    size_t length = 0, done;
    char byte;
    struct wasi_iovec piece = {&byte, 1};
    while (wasi_fd_read(WASI_STDIN, &piece, 1, &done) == 0 && done == 1) {
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

/* Memory grows and never shrinks (Core Specification, 4.4.7, memory.grow): what was released is given again. */
#define ALIGNMENT (2ul << 20)
static uintptr_t first, next;

void *place_memory(size_t bytes)
{
    if (first == 0)
        first = next = (__builtin_wasm_memory_size(0) * WASM_PAGE + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
    uintptr_t start = next, end = (start + bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
    uintptr_t there = __builtin_wasm_memory_size(0) * WASM_PAGE;
    if (end < start || (end > there && __builtin_wasm_memory_grow(0, (end - there) / WASM_PAGE) == (size_t)-1))
        return NULL;
    next = end;
    return (void *)start;
}

void place_release(void)
{
    next = first;
}

/* The nearest to a system call that does nothing: it leaves the module, writes two words, and is back. */
uint64_t place_null_call(void)
{
    size_t count, size;
    return wasi_args_sizes_get(&count, &size);
}

/* The disk is a file; it stays open. */
static int disk = -1;

const char *place_disk_prepare(uint64_t *size)
{
    const uint64_t rights = WASI_RIGHT_FD_READ | WASI_RIGHT_FD_SEEK;
    if (disk < 0 && wasi_path_open(WASI_FIRST_PREOPENED, 0, DISK, sizeof DISK - 1, 0, rights, 0, 0, &disk) != 0)
        return "the disk cannot be opened";
    return wasi_fd_seek(disk, 0, WASI_WHENCE_END, size) == 0 ? NULL : "the disk has no size";
}

/* A runtime may read less than was asked for. */
bool place_disk_read(uint64_t offset, void *buffer, uint32_t length)
{
    uint8_t *at = buffer;
    while (length > 0) {
        struct wasi_iovec piece = {at, length};
        size_t done;
        if (wasi_fd_pread(disk, &piece, 1, offset, &done) != 0 || done == 0 || done > length)
            return false;
        at += done, offset += done, length -= (uint32_t)done;
    }
    return true;
}
