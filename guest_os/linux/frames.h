/* What the guest and its peer on the host (peer.c) say to each other in Ethernet frames. */
#pragma once

#include <stdint.h>

#define ETHERTYPE 0x88b5 /* IEEE 802, "Local Experimental Ethertype 1" */
#define SMALLEST 60      /* bytes of a frame without its checksum (IEEE 802.3) */
#define LARGEST 1514
#define PATIENCE 3 /* seconds after which a frame counts as lost: none is lost on a unix socket */

enum kind {
    ECHO = 1, /* send this back */
    DATA,     /* count this */
    SYNC,     /* say how many DATA came since the last SYNC, and the sum of their numbers */
    BURST,    /* send `count` DATA of `size` bytes, numbered from 0 */
    ANSWER,   /* to SYNC */
};

struct frame {
    uint8_t to[6], from[6];
    uint16_t ethertype; /* big-endian, as on every wire; what follows is little-endian, as both sides are */
    uint16_t kind;
    uint32_t number; /* of ECHO and DATA */
    uint32_t count;
    uint32_t size;
    uint64_t sum;
    uint8_t rest[LARGEST - 36];
} __attribute__((packed));

_Static_assert(sizeof(struct frame) == LARGEST, "a frame of the largest size");
