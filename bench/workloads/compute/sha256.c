/* SHA-256 (FIPS 180-4) of a buffer, over and over: integer arithmetic in registers, few branches. */
/* quick: yes */
#include "bench.h"
#include <string.h>

#define BUFFER_BYTES 65536
#define PASSES 240

static uint32_t round_constant[64], initial_hash[8];
static uint8_t buffer[BUFFER_BYTES];

/* The first 32 bits of the fractional part of the square (or cube) root of a prime, by bisection in
 * integers: the largest x with x^degree <= prime * 2^(32 * degree). */
static uint32_t root_fraction(uint32_t prime, int degree)
{
    uint64_t low = 0, high = 1ull << 37;
    while (high - low > 1) {
        uint64_t x = (low + high) / 2;
        unsigned __int128 power = (unsigned __int128)x * x;
        /* 37-bit x: x^2 fits in 74 bits, x^3 in 111. */
        unsigned __int128 limit = (unsigned __int128)prime << (32 * degree);
        if (degree == 3)
            power *= x;
        if (power > limit)
            high = x;
        else
            low = x;
    }
    return (uint32_t)low;
}

static void make_constants(void)
{
    int found = 0;
    for (uint32_t n = 2; found < 64; n++) {
        uint32_t d = 2;
        while (d * d <= n && n % d)
            d++;
        if (d * d <= n)
            continue;
        if (found < 8)
            initial_hash[found] = root_fraction(n, 2);
        round_constant[found++] = root_fraction(n, 3);
    }
}

static inline uint32_t rotate(uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

static void compress(uint32_t hash[8], const uint8_t block[64])
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++) {
        memcpy(&w[i], block + 4 * i, 4);
        w[i] = __builtin_bswap32(w[i]);
    }
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    memcpy(s, hash, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t sum1 = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
        uint32_t choose = (s[4] & s[5]) ^ (~s[4] & s[6]);
        uint32_t t1 = s[7] + sum1 + choose + round_constant[i] + w[i];
        uint32_t sum0 = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
        uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
        memmove(s + 1, s, 7 * sizeof *s);
        s[4] += t1;
        s[0] = t1 + sum0 + majority;
    }
    for (int i = 0; i < 8; i++)
        hash[i] += s[i];
}

int main(void)
{
    uint32_t hash[8];
    uint64_t seed = 88172645463325252ull;
    make_constants();
    memcpy(hash, initial_hash, sizeof hash);
    for (int i = 0; i < BUFFER_BYTES; i++)
        buffer[i] = (uint8_t)next_random(&seed);
    double start = now();
    for (long pass = 0; pass < PASSES * scale(); pass++)
        for (int i = 0; i < BUFFER_BYTES; i += 64)
            compress(hash, buffer + i);
    report("sha256", now() - start, (uint64_t)hash[0] << 32 | hash[7]);
    return 0;
}
