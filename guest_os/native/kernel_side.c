/* What a process has in place of what a kernel does: system calls, signals for traps and interrupts, mappings for page
 * tables, a second process for a second address space. */
#include "hal.h"
#include "native.h"

/* ---- unprivileged ------------------------------------------------------------------------------------------------- */

/* getppid does no more than enter the kernel and read one field; glibc and the vDSO do not cache it. */
uint64_t place_null_call(void)
{
    return (uint64_t)linux_call(LINUX_GETPPID, 0, 0, 0);
}

void linux_handle(int signal, linux_handler *handler)
{
    struct linux_sigaction action = LINUX_SIGACTION(handler);
    linux_call6(LINUX_RT_SIGACTION, (uint64_t)signal, (uint64_t)&action, 0, sizeof action.mask, 0, 0);
}

static uint64_t recovery;

static void on_fault(int signal, struct linux_siginfo *info, struct linux_ucontext *context)
{
    bool page = signal == SIGSEGV;
    linux_resume_at(context, recovery, page ? info->si_addr : 0, page ? TRAP_PAGE : TRAP_DIVIDE);
}

void place_recover_at(void (*address)(void))
{
    recovery = (uint64_t)address;
    linux_handle(DIVISION_SIGNAL, on_fault);
    linux_handle(SIGSEGV, on_fault);
}

/* ---- what a process does not have ------------------------------------------------------------------------------- */

const char *place_privileged_prepare(void)
{
    return UNSUPPORTED "a process has no control registers";
}

const char *place_port_prepare(uint8_t value)
{
    (void)value;
    return UNSUPPORTED "a process has no I/O ports";
}

const char *place_device_prepare(void)
{
    return UNSUPPORTED "a process has no device registers";
}

uint64_t place_privileged(unsigned eights)
{
    (void)eights;
    return FAILED;
}

uint64_t place_port(unsigned eights)
{
    (void)eights;
    return FAILED;
}

uint64_t place_device(unsigned eights)
{
    (void)eights;
    return FAILED;
}

/* ---- page-table entries: pages of a memory file mapped over others ----------------------------------------------- */

#define WINDOW 0x10000000ull

static int64_t pages = -1; /* the file: PLACE_WINDOWS pages that hold PLACE_WORD(0), and as many with PLACE_WORD(1) */

/* The nearest a process has to a page-table update: mmap of fixed pages replaces the entries and flushes them, many in
 * one call; MAP_POPULATE fills the new ones at once, so that reading through them takes no fault. */
static bool show(unsigned i, unsigned count)
{
    return linux_call6(LINUX_MMAP, WINDOW, count * PAGE_SIZE, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_FIXED | MAP_POPULATE, (uint64_t)pages,
                       i * PLACE_WINDOWS * PAGE_SIZE) == (int64_t)WINDOW;
}

const char *place_windows_prepare(void)
{
    if (pages < 0) {
        pages = linux_call(LINUX_MEMFD_CREATE, (uint64_t) "window", 0, 0);
        if (pages < 0 || linux_call(LINUX_FTRUNCATE, (uint64_t)pages, 2 * PLACE_WINDOWS * PAGE_SIZE, 0) != 0)
            return "no memory file";
    }
    for (unsigned i = 0; i < 2; i++) {
        if (!show(i, PLACE_WINDOWS))
            return "no page can be mapped";
        for (unsigned page = 0; page < PLACE_WINDOWS; page++)
            *(volatile uint64_t *)(WINDOW + page * PAGE_SIZE) = PLACE_WORD(i);
    }
    return NULL;
}

const char *place_window_prepare(void)
{
    return place_windows_prepare();
}

uint64_t place_window(unsigned i)
{
    return show(i, 1) ? *(volatile const uint64_t *)WINDOW : FAILED;
}

uint64_t place_windows(unsigned i)
{
    uint64_t sum = 0;
    if (!show(i, PLACE_WINDOWS))
        return FAILED;
    for (unsigned page = 0; page < PLACE_WINDOWS; page++)
        sum += *(volatile const uint64_t *)(WINDOW + page * PAGE_SIZE);
    return sum;
}

/* ---- an address space: a second process on the same CPU, woken through a pipe ------------------------------------ */

static struct {
    int32_t read, write;
} to_child, to_parent;
static bool child_runs;

static void pin_to_one_cpu(void)
{
    uint64_t mask[16] = {0};
    if (linux_call(LINUX_SCHED_GETAFFINITY, 0, sizeof mask, (uint64_t)mask) <= 0)
        return;
    for (unsigned i = 0; i < 16; i++) {
        if (mask[i] == 0)
            continue;
        uint64_t lowest = mask[i] & -mask[i];
        for (unsigned j = 0; j < 16; j++)
            mask[j] = j == i ? lowest : 0;
        break;
    }
    linux_call(LINUX_SCHED_SETAFFINITY, 0, sizeof mask, (uint64_t)mask);
}

_Noreturn static void answer_with(volatile const uint64_t *word)
{
    char token;
    linux_call(LINUX_PRCTL, PR_SET_PDEATHSIG, SIGKILL, 0);
    while (linux_call(LINUX_READ, (uint64_t)to_child.read, (uint64_t)&token, 1) == 1) {
        uint64_t answer = *word;
        linux_call(LINUX_WRITE, (uint64_t)to_parent.write, (uint64_t)&answer, sizeof answer);
    }
    for (;;)
        linux_call(LINUX_EXIT, 0, 0, 0);
}

static uint64_t word; /* one address, another word in each process */

const char *place_spaces_prepare(void)
{
    if (child_runs)
        return NULL;
    if (linux_call(LINUX_PIPE2, (uint64_t)&to_child, 0, 0) != 0 ||
        linux_call(LINUX_PIPE2, (uint64_t)&to_parent, 0, 0) != 0)
        return "no pipe";
    pin_to_one_cpu();
    int64_t child = linux_call(LINUX_CLONE, SIGCHLD, 0, 0);
    if (child < 0)
        return "no second process";
    word = PLACE_WORD(child == 0);
    if (child == 0)
        answer_with(&word);
    child_runs = true;
    return NULL;
}

/* To the child and back are two switches; the workload goes to 1 and to 0 in turn, so each call counts as one. */
uint64_t place_space(unsigned i)
{
    uint64_t answer = FAILED;
    if (i == 0)
        return *(volatile const uint64_t *)&word;
    linux_call(LINUX_WRITE, (uint64_t)to_child.write, (uint64_t) "", 1);
    linux_call(LINUX_READ, (uint64_t)to_parent.read, (uint64_t)&answer, sizeof answer);
    return answer;
}

/* ---- an interrupt: a signal ----------------------------------------------------------------------------------------- */

static volatile uint64_t signals;
static uint64_t self;

static void on_signal(int signal, struct linux_siginfo *info, struct linux_ucontext *context)
{
    (void)signal, (void)info, (void)context;
    signals++;
}

const char *place_interrupt_prepare(void)
{
    self = (uint64_t)linux_call(LINUX_GETPID, 0, 0, 0);
    linux_handle(SIGUSR1, on_signal);
    return NULL;
}

/* A signal to oneself that is not blocked has been handled when kill() returns (POSIX, kill). */
uint64_t place_interrupt(void)
{
    linux_call(LINUX_KILL, self, SIGUSR1, 0);
    return signals;
}
