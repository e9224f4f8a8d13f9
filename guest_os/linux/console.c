/* Consoles: lines written, and acknowledged by the peer on the host (peer.c) when they have arrived. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define LINE 64u /* bytes, as in the tiny guest's workload of that name */
#define LINES 64u
#define END_OF_TRANSMISSION 4 /* ASCII; asks the peer for the sum of the bytes since the last one */
#define PATIENCE_TENTHS 50    /* of a second (termios VTIME) */

static int console = -1;
static char text[LINE * LINES + 1];
static unsigned char expected;

static void prepare(const struct workload *work)
{
    char path[NAME_MAX_LENGTH + 8];
    struct termios mode;
    snprintf(path, sizeof path, "/dev/%s", work->device);
    console = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (console < 0 || tcgetattr(console, &mode) != 0)
        fail(path);
    cfmakeraw(&mode);
    cfsetspeed(&mode, B115200); /* which no emulated UART keeps to */
    mode.c_cc[VMIN] = 0;
    mode.c_cc[VTIME] = PATIENCE_TENTHS;
    if (tcsetattr(console, TCSAFLUSH, &mode) != 0)
        fail(path);
    expected = 0;
    for (unsigned at = 0; at < sizeof text - 1; at++) {
        text[at] = at % LINE == LINE - 1 ? '\n' : (char)('A' + at % 26);
        expected += (unsigned char)text[at];
    }
    text[sizeof text - 1] = END_OF_TRANSMISSION;
}

static void release(const struct workload *work)
{
    (void)work;
    if (console >= 0)
        close(console);
    console = -1;
}

static uint64_t write_lines(const struct workload *work)
{
    unsigned char answer;
    (void)work;
    for (size_t done = 0; done < sizeof text;) {
        ssize_t some = write(console, text + done, sizeof text - done);
        if (some <= 0)
            fail("write");
        done += (size_t)some;
    }
    errno = ETIMEDOUT;
    if (read(console, &answer, 1) != 1)
        fail("what was written did not arrive");
    errno = EBADMSG;
    if (answer != expected)
        fail("other bytes arrived than were written");
    return answer;
}

static void add(const char *name, const struct device *device)
{
    struct workload *work = add_workload("console", driver_of(device), name);
    tell_device("console", name, device);
    work->prepare = prepare;
    work->batch = write_lines;
    work->release = release;
    work->ops = LINES;
}

void add_consoles(void)
{
    struct device device;
    void *listing = NULL;
    /* ttyS0 is where the host speaks to us; ttyS1, if there is one, is to be measured. 0 is PORT_UNKNOWN: no UART. */
    FILE *type = fopen("/sys/class/tty/ttyS1/type", "r");
    if (type != NULL) {
        int uart = 0;
        if (fscanf(type, "%d", &uart) == 1 && uart != 0 && look_up("/sys/class/tty/ttyS1/device", &device))
            add("ttyS1", &device);
        fclose(type);
    }
    /* hvc0 is a virtual device in sysfs: the virtio port it is the face of says whose it is. */
    for (const char *name; (name = next_entry("/sys/class/virtio-ports", &listing)) != NULL;) {
        char path[NAME_MAX_LENGTH + 40];
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%.40s", name);
        if (look_up(path, &device) && access("/dev/hvc0", F_OK) == 0)
            add("hvc0", &device);
    }
}
