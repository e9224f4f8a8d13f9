/* Integer work: a sieve, a matrix product, and SHA-256 over their results; nothing leaves the first-level cache.
 * tests/guest_os computes the same checksum with Python's hashlib. */
#include "workload.h"

#define SIEVE_LIMIT 8192
#define MATRIX 24
#define MESSAGE 1024

/* SHA-256: FIPS 180-4, sections 4.1.2, 4.2.2, 5.3.3 and 6.2 */
static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

static void sha256_block(uint32_t h[8], const uint8_t *block)
{
    uint32_t w[64];
    for (unsigned t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | block[4 * t + 1] << 16 | block[4 * t + 2] << 8 | block[4 * t + 3];
    for (unsigned t = 16; t < 64; t++) {
        uint32_t s0 = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], hh = h[7];
    for (unsigned t = 0; t < 64; t++) {
        uint32_t t1 = hh + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + K[t] + w[t];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        hh = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += hh;
}

/* The first 64 bits of the hash; the buffer has room for the padding (at most 72 bytes) after its `length` bytes. */
static uint64_t sha256(uint8_t *message, uint64_t length)
{
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint64_t end = length;
    message[end++] = 0x80;
    while (end % 64 != 56)
        message[end++] = 0;
    for (int shift = 56; shift >= 0; shift -= 8)
        message[end++] = (uint8_t)(length * 8 >> shift);
    for (uint64_t at = 0; at < end; at += 64)
        sha256_block(h, message + at);
    return (uint64_t)h[0] << 32 | h[1];
}

/* The sum of the primes below SIEVE_LIMIT. */
static uint64_t sieve(void)
{
    static uint8_t composite[SIEVE_LIMIT];
    uint64_t sum = 0;
    for (unsigned i = 0; i < SIEVE_LIMIT; i++)
        composite[i] = 0;
    for (unsigned i = 2; i < SIEVE_LIMIT; i++) {
        if (composite[i])
            continue;
        sum += i;
        for (unsigned multiple = i * i; multiple < SIEVE_LIMIT; multiple += i)
            composite[multiple] = 1;
    }
    return sum;
}

/* The folded elements, row by row, of A * B modulo 2^64, with A[i][j] = 31i + 17j + 1 and B[i][j] = 13i ^ 7j. */
static uint64_t matrix_product(void)
{
    static uint64_t a[MATRIX][MATRIX], b[MATRIX][MATRIX];
    uint64_t checksum = 0;
    for (unsigned i = 0; i < MATRIX; i++) {
        for (unsigned j = 0; j < MATRIX; j++) {
            a[i][j] = 31 * i + 17 * j + 1;
            b[i][j] = (13 * i) ^ (7 * j);
        }
    }
    for (unsigned i = 0; i < MATRIX; i++) {
        for (unsigned j = 0; j < MATRIX; j++) {
            uint64_t sum = 0;
            for (unsigned k = 0; k < MATRIX; k++)
                sum += a[i][k] * b[k][j];
            checksum = fold(checksum, sum);
        }
    }
    return checksum;
}

static uint64_t batch(void)
{
    static uint8_t message[MESSAGE + 16 + 72];
    uint64_t results[2] = {sieve(), matrix_product()};
    for (unsigned i = 0; i < MESSAGE; i++)
        message[i] = (uint8_t)(7 * i + 3);
    for (unsigned i = 0; i < 16; i++)
        message[MESSAGE + i] = (uint8_t)(results[i / 8] >> i % 8 * 8);
    return sha256(message, MESSAGE + 16);
}

const struct workload workload_cpu = {.name = "cpu", .operations = 1, .batch = batch};
