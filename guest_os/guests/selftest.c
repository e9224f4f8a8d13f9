/* Checks the kernel itself, one JSON line a check; the exit code is the number that failed. */
#include "kernel.h"
#include "offences.h"
#include "virtio.h"

static unsigned failed;

static void check(const char *what, bool ok)
{
    print("{\"check\":\"%s\",\"ok\":%s}\n", what, ok ? "true" : "false");
    failed += !ok;
}

static void skip(const char *what, const char *reason)
{
    print("{\"check\":\"%s\",\"ok\":true,\"skipped\":\"%s\"}\n", what, reason);
}

/* ---- traps in the kernel --------------------------------------------------------------------------------------------- */

#define UNMAPPED 0x7ead00000000

/* One function for each: an instruction that traps, and the label where the kernel goes on. */
#define TRAPPING(wanted, instruction, operand)                                                                    \
    extern char after_##wanted[];                                                                                 \
    __attribute__((noinline)) static bool traps_##wanted(void)                                                    \
    {                                                                                                            \
        kernel_recovery = (uint64_t)after_##wanted;                                                               \
        kernel_last_trap.name = NULL;                                                                            \
        KERNEL_TRAP("after_" #wanted, instruction, operand);                                                      \
        kernel_recovery = 0;                                                                                     \
        return kernel_last_trap.name != NULL && kernel_last_trap.cause == wanted && !kernel_last_trap.from_user;  \
    }
KERNEL_TRAPS(TRAPPING)

static void check_kernel_traps(void)
{
    check("kernel: division by zero is caught", traps_TRAP_DIVIDE());
    check("kernel: invalid opcode is caught", traps_TRAP_ILLEGAL());
    check("kernel: general protection is caught", traps_TRAP_PROTECTION());
    check("kernel: page fault is caught", traps_TRAP_PAGE());
    check("kernel: page fault tells its address and why", kernel_last_trap.address == UNMAPPED && kernel_last_trap.code == 0);
}

/* ---- interrupts -------------------------------------------------------------------------------------------------------- */

static volatile unsigned self_interrupts;

static void count(void *context)
{
    (void)context;
    self_interrupts++;
}

static void check_interrupts(void)
{
    hal_self_interrupt_handle(count, NULL);
    hal_self_interrupt();
    check("an interrupt waits while they are disabled", self_interrupts == 0);
    while (self_interrupts == 0)
        hal_wait();
    check("an interrupt sent to oneself comes once", self_interrupts == 1);

    hal_timer_start(100);
    while (hal_ticks() < 3)
        hal_wait();
    check("the timer ticks", true);

    uint64_t before = hal_ticks();
    for (unsigned i = 0; i < 50 && hal_ticks() == before; i++)
        program_run("spin", 100000000);
    check("the timer interrupts a program that makes no system calls", hal_ticks() != before);
    hal_timer_stop();
}

/* ---- memory -------------------------------------------------------------------------------------------------------------- */

#define WINDOW 0x20000000

static void check_memory(void)
{
    uint64_t mark = frames_mark();
    uint64_t first = frames_take(PAGE_SIZE), second = frames_take(PAGE_SIZE);
    struct space *space = hal_space_create();
    bool mapped = first != 0 && second != 0 && space != NULL && hal_space_map(space, WINDOW, first, PAGE_SIZE, PAGE_WRITE);
    check("a page can be mapped", mapped);
    if (mapped) {
        uint64_t *one = hal_kernel_address(first), *two = hal_kernel_address(second);
        volatile uint64_t *window = (volatile uint64_t *)WINDOW;
        *one = 1, *two = 2;
        hal_space_switch(space);
        check("a mapped page shows its frame", *window == 1);
        *window = 3;
        check("a write through a mapping reaches the frame", *(volatile uint64_t *)one == 3);
        hal_page_change(hal_space_entry(space, WINDOW), WINDOW, second, PAGE_WRITE);
        check("a changed entry shows the new frame after a flush", *window == 2);
        hal_space_switch(NULL);
    }
    check("more memory than there is, is refused", frames_take(1ull << 40) == 0);
    frames_release(mark);
}

/* ---- user programs --------------------------------------------------------------------------------------------------------- */

#define OFFENCE_ROW(name, what, cause, code) {what, cause, code},
static const struct {
    const char *what;
    enum trap_cause cause;
    uint64_t code;
} offences[OFFENCES] = {OFFENCE_TABLE(OFFENCE_ROW)};

static void check_programs(void)
{
    struct program_end end = program_run("checks", 0);
    check("user: a program runs, ended by a system call", end.started && !end.killed);
    failed += (unsigned)end.code;
    for (unsigned i = 0; i < OFFENCES; i++) {
        end = program_run("offend", i);
        bool ok = end.killed && end.trap.cause == offences[i].cause &&
                  (end.trap.code == offences[i].code || offence_excused(i, end.trap.code));
        check(offences[i].what, ok);
        if (!ok)
            print("  killed %d, %s, error %lx\n", end.killed, end.killed ? end.trap.name : "-", end.trap.code);
    }
    check("user: an unknown program is refused", program_run("nonesuch", 0).code == ENOENT);
}

/* ---- devices ------------------------------------------------------------------------------------------------------------------ */

#define TAIL (64u << 10) /* the last bytes of the disk, which this may overwrite */
#define MIB (1ull << 20)

static uint64_t word_at(unsigned i)
{
    return (i + 1) * 0x9e3779b97f4a7c15;
}

static void check_disk(struct virtio_blk *disk)
{
    uint64_t mark = frames_mark(), size = virtio_blk_size(disk);
    uint64_t *words = hal_kernel_address(frames_take(TAIL));
    check("virtio-blk: reads its first sector", virtio_blk_read(disk, 0, words, 512));
    check("virtio-blk: refuses to read beyond its end", !virtio_blk_read(disk, size, words, 512));
    if (virtio_blk_read_only(disk)) {
        check("virtio-blk: a read-only disk refuses a write", !virtio_blk_write(disk, 0, words, 512));
    } else if (size > MIB) {
        unsigned wrong = 0;
        for (unsigned i = 0; i < TAIL / 8; i++)
            words[i] = word_at(i);
        check("virtio-blk: writes", virtio_blk_write(disk, size - TAIL, words, TAIL));
        check("virtio-blk: flushes", virtio_blk_flush(disk));
        for (unsigned i = 0; i < TAIL / 8; i++)
            words[i] = 0;
        check("virtio-blk: reads back", virtio_blk_read(disk, size - TAIL, words, TAIL));
        for (unsigned i = 0; i < TAIL / 8; i++)
            wrong += words[i] != word_at(i);
        check("virtio-blk: what was written is what is read", wrong == 0);
    } else {
        skip("virtio-blk: writes", "the disk is not bigger than 1 MiB");
    }
    frames_release(mark);
}

static void check_devices(void)
{
    static uint64_t random[2][4];
    if (virtio_rng_read(random[0], sizeof random[0]) == 0)
        skip("virtio-rng: gives bytes", "no device");
    else
        check("virtio-rng: gives bytes, others each time", virtio_rng_read(random[1], sizeof random[1]) != 0 &&
                                                               random[0][0] != random[1][0] && random[0][0] != 0);
    struct virtio_blk *disk = virtio_blk_disk();
    if (disk == NULL)
        skip("virtio-blk: reads", "no device");
    else
        check_disk(disk);
    static const char text[] = "selftest\n";
    if (!virtio_console_start()) {
        skip("virtio-console: writes", "no device");
    } else {
        virtio_console_write(text, sizeof text - 1);
        check("virtio-console: writes", true);
    }
}

int guest_main(void)
{
    check("boot: the loader told of memory", hal_boot_info()->memory_bytes >= 8 * MIB);
    check_kernel_traps();
    check_interrupts();
    check_memory();
    check_programs();
    check_devices();
    print("{\"selftest\":\"%s\",\"failed\":%u}\n", failed == 0 ? "passed" : "failed", failed);
    return (int)failed;
}
