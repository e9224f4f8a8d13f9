/* Networks: frames on a packet socket, so that the device and its driver are measured and no protocol above them. */
#define _GNU_SOURCE
#include "bench.h"
#include "frames.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define FRAMES 64u   /* of one direction in a batch: less than any ring here holds is on its way at once */
#define AT_ONCE 16u  /* frames a system call */
#define LINK_TRIES 200
#define LINK_TRY_MS 50

static int wire = -1;
static struct frame out[AT_ONCE], in[AT_ONCE];

static void set_patience(long milliseconds)
{
    struct timeval patience = {milliseconds / 1000, milliseconds % 1000 * 1000};
    if (setsockopt(wire, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0)
        fail("SO_RCVTIMEO");
}

static void send_one(enum kind kind, uint32_t number, uint32_t count, uint32_t size)
{
    out[0].kind = kind;
    out[0].number = number;
    out[0].count = count;
    out[0].size = size;
    if (send(wire, &out[0], SMALLEST, 0) != SMALLEST)
        fail("send");
}

/* Up to `most` frames, one at least; 0 when none came in time. */
static unsigned receive(unsigned most)
{
    struct mmsghdr messages[AT_ONCE];
    struct iovec parts[AT_ONCE];
    memset(messages, 0, sizeof messages);
    for (unsigned i = 0; i < AT_ONCE; i++) {
        parts[i] = (struct iovec){&in[i], sizeof in[i]};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int got = recvmmsg(wire, messages, most < AT_ONCE ? most : AT_ONCE, MSG_WAITFORONE, NULL);
    if (got < 0 && errno != EAGAIN)
        fail("receive");
    return got < 0 ? 0 : (unsigned)got;
}

static void expect(enum kind kind, const struct frame *frame)
{
    errno = EBADMSG;
    if (frame->kind != kind)
        fail("another frame than the one asked for");
}

static void lost(void)
{
    errno = ETIMEDOUT;
    fail("a frame is lost");
}

/* A link that was just brought up eats frames for a while: knock until an echo comes, then let late ones go by. */
static void await_peer(void)
{
    unsigned tries = 0;
    set_patience(LINK_TRY_MS);
    do {
        if (tries++ == LINK_TRIES) {
            errno = ENOLINK;
            fail("the peer does not answer");
        }
        send_one(ECHO, 0, 0, 0);
    } while (receive(1) == 0);
    while (receive(AT_ONCE) != 0)
        ;
    set_patience(PATIENCE * 1000L);
}

static void prepare(const struct workload *work)
{
    struct ifreq request = {0};
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETHERTYPE)};
    int room = 4 << 20;
    wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETHERTYPE));
    if (wire < 0)
        fail("packet socket");
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", work->device);
    if (ioctl(wire, SIOCGIFFLAGS, &request) != 0)
        fail("SIOCGIFFLAGS");
    request.ifr_flags |= IFF_UP;
    if (ioctl(wire, SIOCSIFFLAGS, &request) != 0)
        fail("the interface does not come up");
    address.sll_ifindex = (int)if_nametoindex(work->device);
    if (bind(wire, (struct sockaddr *)&address, sizeof address) != 0)
        fail("bind");
    if (ioctl(wire, SIOCGIFHWADDR, &request) != 0)
        fail("SIOCGIFHWADDR");
    setsockopt(wire, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    for (unsigned i = 0; i < AT_ONCE; i++) {
        memset(&out[i], 0, sizeof out[i]);
        memset(out[i].to, 0xff, sizeof out[i].to);
        memcpy(out[i].from, request.ifr_hwaddr.sa_data, sizeof out[i].from);
        out[i].ethertype = htons(ETHERTYPE);
    }
    await_peer();
    errno = 0;
}

static void release(const struct workload *work)
{
    (void)work;
    if (wire >= 0)
        close(wire);
    wire = -1;
}

static uint64_t round_trips(const struct workload *work)
{
    uint64_t sum = 0;
    (void)work;
    for (uint32_t number = 0; number < FRAMES; number++) {
        send_one(ECHO, number, 0, 0);
        if (receive(1) != 1)
            lost();
        expect(ECHO, &in[0]);
        sum += in[0].number;
    }
    return sum;
}

static uint64_t send_frames(size_t size)
{
    struct mmsghdr messages[AT_ONCE];
    struct iovec parts[AT_ONCE];
    memset(messages, 0, sizeof messages);
    for (uint32_t sent = 0; sent < FRAMES; sent += AT_ONCE) {
        for (unsigned i = 0; i < AT_ONCE; i++) {
            out[i].kind = DATA;
            out[i].number = sent + i;
            parts[i] = (struct iovec){&out[i], size};
            messages[i].msg_hdr.msg_iov = &parts[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        for (unsigned done = 0; done < AT_ONCE;) {
            int some = sendmmsg(wire, messages + done, AT_ONCE - done, 0);
            if (some < 0)
                fail("send");
            done += (unsigned)some;
        }
    }
    send_one(SYNC, 0, 0, 0);
    if (receive(1) != 1)
        lost();
    expect(ANSWER, &in[0]);
    if (in[0].count != FRAMES)
        lost();
    return in[0].sum;
}

static uint64_t receive_frames(uint32_t size)
{
    uint64_t sum = 0;
    uint32_t got = 0;
    send_one(BURST, 0, FRAMES, size);
    while (got < FRAMES) {
        unsigned some = receive(FRAMES - got);
        if (some == 0)
            lost();
        for (unsigned i = 0; i < some; i++) {
            expect(DATA, &in[i]);
            sum += in[i].number;
        }
        got += some;
    }
    return sum;
}

static uint64_t send_small(const struct workload *work) { return (void)work, send_frames(SMALLEST); }
static uint64_t send_large(const struct workload *work) { return (void)work, send_frames(LARGEST); }
static uint64_t receive_small(const struct workload *work) { return (void)work, receive_frames(SMALLEST); }
static uint64_t receive_large(const struct workload *work) { return (void)work, receive_frames(LARGEST); }

void add_networks(void)
{
    static const struct {
        const char *name;
        uint64_t (*batch)(const struct workload *);
    } kinds[] = {
        {"net-roundtrip", round_trips},     {"net-send", send_small},
        {"net-send-large", send_large},     {"net-receive", receive_small},
        {"net-receive-large", receive_large},
    };
    void *listing = NULL;
    struct device device;
    for (const char *name; (name = next_entry("/sys/class/net", &listing)) != NULL;) {
        char path[NAME_MAX_LENGTH + 32];
        snprintf(path, sizeof path, "/sys/class/net/%.40s/device", name);
        if (!look_up(path, &device))
            continue; /* the loopback interface */
        tell_device("net", name, &device);
        for (unsigned kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
            struct workload *work = add_workload(kinds[kind].name, driver_of(&device), name);
            work->prepare = prepare;
            work->batch = kinds[kind].batch;
            work->release = release;
            work->ops = FRAMES;
        }
    }
}
