/* The system calls of a WebAssembly module: WASI preview 1 (WebAssembly/WASI, legacy/preview1/docs.md), the functions that
 * the workloads use. All return an errno, 0 for success. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))

struct wasi_iovec { /* iovec and ciovec */
    const void *buf;
    size_t buf_len;
};

#define WASI_STDIN 0
#define WASI_STDOUT 1
#define WASI_FIRST_PREOPENED 3      /* the directory the module was given */
#define WASI_WHENCE_END 2
#define WASI_RIGHT_FD_READ (1 << 1) /* rights */
#define WASI_RIGHT_FD_SEEK (1 << 2)

WASI(args_sizes_get) uint16_t wasi_args_sizes_get(size_t *count, size_t *size);
WASI(fd_read) uint16_t wasi_fd_read(int fd, const struct wasi_iovec *iovs, size_t count, size_t *done);
WASI(fd_write) uint16_t wasi_fd_write(int fd, const struct wasi_iovec *iovs, size_t count, size_t *done);
WASI(fd_pread)
uint16_t wasi_fd_pread(int fd, const struct wasi_iovec *iovs, size_t count, uint64_t offset, size_t *done);
WASI(fd_seek) uint16_t wasi_fd_seek(int fd, int64_t offset, uint8_t whence, uint64_t *position);
WASI(path_open)
uint16_t wasi_path_open(int directory, uint32_t lookup, const char *path, size_t length, uint16_t oflags, uint64_t rights,
                        uint64_t inherited, uint16_t fdflags, int *fd);
WASI(proc_exit) _Noreturn void wasi_proc_exit(uint32_t code);
