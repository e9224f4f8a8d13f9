/* Runs user programs: one address space, made once; each run gets fresh data and heap frames. */
#include "kernel.h"

/* ELF-64 (System V ABI, chapters 4 and 5): what is read of it */
struct elf_header {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    uint64_t entry, phoff, shoff;
    uint32_t flags;
    uint16_t ehsize, phentsize, phnum;
};
struct elf_segment {
    uint32_t type, flags;
    uint64_t offset, vaddr, paddr, filesz, memsz, align;
};
#define PT_LOAD 1
#define PF_W 2

extern const uint8_t user_image[]; /* programs.S: the ELF file, page-aligned */

uint64_t program_recovery;
static struct space *space;
static uint64_t heap_end;
static struct program_end end;

/* Maps what the file holds; variables have no bytes in the file (programs/user.ld) and lie at USER_DATA. */
static bool map_image(void)
{
    const struct elf_header *elf = (const struct elf_header *)user_image;
    const struct elf_segment *segment = (const struct elf_segment *)(user_image + elf->phoff);
    for (unsigned i = 0; i < elf->phnum; i++) {
        if (segment[i].type != PT_LOAD || (segment[i].flags & PF_W) != 0)
            continue;
        for (uint64_t at = 0; at < segment[i].filesz; at += PAGE_SIZE)
            if (!hal_space_map(space, segment[i].vaddr + at, hal_physical(user_image + segment[i].offset + at),
                               PAGE_SIZE, PAGE_USER | PAGE_EXECUTE))
                return false;
    }
    return true;
}

static bool prepare(const char *name, uint64_t number)
{
    if (space == NULL) {
        space = hal_space_create();
        if (space == NULL || !map_image())
            return false;
    }
    uint64_t data = frames_take(LARGE_PAGE_SIZE);
    if (data == 0 || !hal_space_map(space, USER_DATA, data, LARGE_PAGE_SIZE, PAGE_USER | PAGE_WRITE))
        return false;
    struct program_arguments *arguments = hal_kernel_address(data);
    arguments->number = number;
    write_text(arguments->name, sizeof arguments->name, "%s", name);
    heap_end = USER_HEAP;
    program_recovery = 0;
    return true;
}

struct program_end program_run(const char *name, uint64_t number)
{
    uint64_t mark = frames_mark();
    end = (struct program_end){.started = prepare(name, number)};
    if (end.started) {
        hal_space_switch(space);
        end.code = hal_user_run(((const struct elf_header *)user_image)->entry, USER_STACK, USER_DATA);
        hal_space_switch(NULL);
        for (uint64_t at = USER_HEAP; at < heap_end; at += LARGE_PAGE_SIZE)
            hal_space_unmap(space, at);
    }
    frames_release(mark);
    return end;
}

_Noreturn void program_killed(const struct trap *trap)
{
    end.killed = true;
    end.trap = *trap;
    hal_user_leave(0);
}

uint64_t program_heap(uint64_t bytes)
{
    uint64_t start = heap_end;
    if (bytes == 0 || bytes > USER_HEAP_END - start)
        return 0;
    for (uint64_t at = start; at < start + bytes; at += LARGE_PAGE_SIZE) {
        uint64_t frame = frames_take(LARGE_PAGE_SIZE);
        if (frame == 0 || !hal_space_map(space, at, frame, LARGE_PAGE_SIZE, PAGE_USER | PAGE_WRITE))
            return 0;
        heap_end = at + LARGE_PAGE_SIZE;
    }
    return start;
}
