/* The kernel as a place for workloads (include/workload.h). */
#include "kernel.h"
#include "virtio.h"
#include "workload.h"

#define NAME(name) #name,
const char *const place_names_below[] = {USER_WORKLOADS(NAME) NULL};

#define WINDOW 0x10000000 /* in user halves made for the purpose: one page, or PLACE_WINDOWS */

void place_write(const char *text, size_t length)
{
    hal_console_write(text, length);
}

bool place_read_line(char *line, size_t size)
{
    console_read_line(line, size);
    return true;
}

bool place_run_below(const char *name, uint64_t batches)
{
    for (unsigned i = 0; place_names_below[i] != NULL; i++) {
        if (!text_equal(place_names_below[i], name))
            continue;
        struct program_end end = program_run(name, batches);
        char reason[96];
        if (!end.started) {
            workload_error(name, "no memory for a program");
        } else if (end.killed) {
            write_text(reason, sizeof reason, "killed by %s at %lx", end.trap.name, end.trap.pc);
            workload_error(name, reason);
        }
        return true;
    }
    return false;
}

static uint64_t mark; /* of the frames, before the first that the workload took */

static uint64_t take(uint64_t size)
{
    if (mark == 0)
        mark = frames_mark();
    return frames_take(size);
}

void place_release(void)
{
    if (mark != 0)
        frames_release(mark);
    mark = 0;
    hal_space_switch(NULL);
}

void *place_memory(size_t bytes)
{
    uint64_t size = LARGE_PAGE_SIZE;
    while (size < bytes)
        size *= 2;
    uint64_t frame = take(size);
    return frame != 0 ? hal_kernel_address(frame) : NULL;
}

const char *place_privileged_prepare(void)
{
    return NULL;
}

uint64_t place_privileged(unsigned eights)
{
    return hal_privileged_register(eights);
}

/* The reason as one that says that there can be no such thing here; NULL for none. */
static const char *unsupported(const char *absence)
{
    static char reason[96];
    if (absence == NULL)
        return NULL;
    write_text(reason, sizeof reason, UNSUPPORTED "%s", absence);
    return reason;
}

const char *place_port_prepare(uint8_t value)
{
    return unsupported(hal_port_prepare(value));
}

uint64_t place_port(unsigned eights)
{
    return hal_port_read(eights);
}

static volatile const uint32_t *magic_value;

const char *place_device_prepare(void)
{
    if (hal_device_absence() != NULL)
        return unsupported(hal_device_absence());
    magic_value = virtio_any_registers();
    return magic_value != NULL ? NULL : "no virtio-mmio device on the command line";
}

uint64_t place_device(unsigned eights)
{
    uint64_t sum = 0;
    while (eights-- > 0) {
        sum += *magic_value, sum += *magic_value, sum += *magic_value, sum += *magic_value;
        sum += *magic_value, sum += *magic_value, sum += *magic_value, sum += *magic_value;
    }
    return sum;
}

/* Two frames that hold PLACE_WORD(0) and PLACE_WORD(1). */
static bool take_marked_frames(uint64_t frame[2])
{
    for (unsigned i = 0; i < 2; i++) {
        frame[i] = take(PAGE_SIZE);
        if (frame[i] == 0)
            return false;
        *(volatile uint64_t *)hal_kernel_address(frame[i]) = PLACE_WORD(i);
    }
    return true;
}

static struct space *spaces[2]; /* made once: table pages are not given back */
static uint64_t window_frame[2];
static uint64_t *window_entry;

static const char *map_windows(void)
{
    if (!take_marked_frames(window_frame))
        return "no memory for two pages";
    for (unsigned i = 0; i < 2; i++) {
        if (spaces[i] == NULL)
            spaces[i] = hal_space_create();
        if (spaces[i] == NULL || !hal_space_map(spaces[i], WINDOW, window_frame[i], PAGE_SIZE, PAGE_USER | PAGE_WRITE))
            return "no memory for page tables";
    }
    return NULL;
}

const char *place_window_prepare(void)
{
    const char *reason = map_windows();
    if (reason == NULL) {
        window_entry = hal_space_entry(spaces[0], WINDOW);
        hal_space_switch(spaces[0]);
    }
    return reason;
}

uint64_t place_window(unsigned i)
{
    hal_page_change(window_entry, WINDOW, window_frame[i], PAGE_USER | PAGE_WRITE);
    return *(volatile const uint64_t *)WINDOW;
}

/* The windows are neighbours in one page table, and so are their entries. */
static struct page_change changes[2][PLACE_WINDOWS];

const char *place_windows_prepare(void)
{
    const char *reason = place_window_prepare();
    for (unsigned i = 0; reason == NULL && i < PLACE_WINDOWS; i++) {
        for (unsigned page = 0; page < 2; page++)
            changes[page][i] = (struct page_change){window_entry + i, WINDOW + i * PAGE_SIZE, window_frame[page]};
    }
    return reason;
}

uint64_t place_windows(unsigned i)
{
    uint64_t sum = 0;
    hal_pages_change(changes[i], PLACE_WINDOWS, PAGE_USER | PAGE_WRITE);
    for (uint64_t at = WINDOW; at < WINDOW + PLACE_WINDOWS * PAGE_SIZE; at += 8 * PAGE_SIZE) {
#define ADD(i) sum += *(volatile const uint64_t *)(at + (i) * PAGE_SIZE)
        ADD(0), ADD(1), ADD(2), ADD(3), ADD(4), ADD(5), ADD(6), ADD(7);
    }
    return sum;
}

const char *place_spaces_prepare(void)
{
    return map_windows();
}

uint64_t place_space(unsigned i)
{
    hal_space_switch(spaces[i]);
    return *(volatile const uint64_t *)WINDOW;
}

static volatile uint64_t interrupts;

static void count_interrupt(void *context)
{
    (void)context;
    interrupts++;
}

const char *place_interrupt_prepare(void)
{
    hal_self_interrupt_handle(count_interrupt, NULL);
    return NULL;
}

uint64_t place_interrupt(void)
{
    uint64_t before = interrupts;
    hal_self_interrupt();
    while (interrupts == before)
        hal_wait();
    return interrupts;
}

const char *place_disk_prepare(uint64_t *size)
{
    if (hal_device_absence() != NULL)
        return unsupported(hal_device_absence());
    struct virtio_blk *disk = virtio_blk_disk();
    if (disk == NULL)
        return "no virtio-blk device that works";
    *size = virtio_blk_size(disk);
    return NULL;
}

bool place_disk_read(uint64_t offset, void *buffer, uint32_t length)
{
    return virtio_blk_read(virtio_blk_disk(), offset, buffer, length);
}
