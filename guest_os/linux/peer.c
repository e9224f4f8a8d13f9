/* The other end of a guest's network or console, on the host: `peer frames FD`, `peer console FD`.
 *
 * FD is a unix socket whose other end QEMU has. Runs until that is closed, or it is killed. */
#define _GNU_SOURCE
#include "frames.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define AT_ONCE 32
#define MOST_IN_A_BURST 1024
#define END_OF_TRANSMISSION 4

static uint32_t data_count;
static uint64_t data_sum;

static void answer(int wire, struct frame *frame, size_t size)
{
    memcpy(frame->to, frame->from, sizeof frame->to);
    memset(frame->from, 0, sizeof frame->from);
    frame->from[0] = 2; /* a locally administered address */
    if (send(wire, frame, size, 0) < 0)
        exit(0); /* the machine is gone */
}

static void burst(int wire, struct frame *frame)
{
    uint32_t count = frame->count, size = frame->size;
    if (count > MOST_IN_A_BURST || size < SMALLEST || size > LARGEST)
        return;
    struct frame data = *frame;
    memset(data.rest, 0, sizeof data.rest);
    for (data.number = 0; data.number < count; data.number++) {
        memcpy(data.from, frame->from, sizeof data.from);
        data.kind = DATA;
        answer(wire, &data, size);
    }
}

static void obey(int wire, struct frame *frame, size_t size)
{
    if (size < SMALLEST || frame->ethertype != htons(ETHERTYPE))
        return; /* Linux's own: router solicitations and the like */
    switch (frame->kind) {
    case ECHO:
        answer(wire, frame, size);
        break;
    case DATA:
        data_count++;
        data_sum += frame->number;
        break;
    case SYNC:
        frame->kind = ANSWER;
        frame->count = data_count;
        frame->sum = data_sum;
        data_count = 0;
        data_sum = 0;
        answer(wire, frame, size);
        break;
    case BURST:
        burst(wire, frame);
        break;
    default:
        break;
    }
}

static void serve_frames(int wire)
{
    static struct frame frames[AT_ONCE];
    struct mmsghdr messages[AT_ONCE];
    struct iovec parts[AT_ONCE];
    for (;;) {
        memset(messages, 0, sizeof messages);
        for (int i = 0; i < AT_ONCE; i++) {
            parts[i] = (struct iovec){&frames[i], sizeof frames[i]};
            messages[i].msg_hdr.msg_iov = &parts[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        int got = recvmmsg(wire, messages, AT_ONCE, MSG_WAITFORONE, NULL);
        if (got <= 0)
            return;
        for (int i = 0; i < got; i++)
            obey(wire, &frames[i], messages[i].msg_len);
    }
}

static void serve_console(int line)
{
    static unsigned char data[1 << 16];
    unsigned char sum = 0;
    for (ssize_t got; (got = read(line, data, sizeof data)) > 0;)
        for (ssize_t at = 0; at < got; at++) {
            if (data[at] != END_OF_TRANSMISSION) {
                sum += data[at];
                continue;
            }
            if (send(line, &sum, 1, MSG_NOSIGNAL) != 1)
                return;
            sum = 0;
        }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: peer frames|console FD\n");
        return 2;
    }
    if (strcmp(argv[1], "frames") == 0)
        serve_frames(atoi(argv[2]));
    else
        serve_console(atoi(argv[2]));
    return 0;
}
