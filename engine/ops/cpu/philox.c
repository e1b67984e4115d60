/* Random words of consecutive counters: Philox4x32-10 (engine/ops/philox.py names the paper). */
#pragma GCC optimize("O3") /* the build is -O2: at -O3 linear.c takes six seconds to compile */
#include <stdint.h>

#define TILE 256 /* counters at a time: their words stay in the first-level cache */
#define ROUNDS 10

/* out[4 * n]: the four words of counters (low, high, 0, 0), (low, high, 1, 0), ... under a key. */
void baton_words(uint32_t low, uint32_t high, uint32_t key0, uint32_t key1, int64_t n,
                 uint32_t *out) {
    for (int64_t first = 0; first < n; first += TILE) {
        uint32_t c0[TILE], c1[TILE], c2[TILE], c3[TILE];
        const int64_t count = n - first < TILE ? n - first : TILE;
        for (int i = 0; i < TILE; i++)
            c0[i] = low, c1[i] = high, c2[i] = (uint32_t)(first + i), c3[i] = 0;
        uint32_t k0 = key0, k1 = key1;
        for (int round = 0; round < ROUNDS; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
            for (int i = 0; i < TILE; i++) {
                const uint64_t one = (uint64_t)c0[i] * 0xD2511F53u;
                const uint64_t other = (uint64_t)c2[i] * 0xCD9E8D57u;
                c0[i] = (uint32_t)(other >> 32) ^ c1[i] ^ k0;
                c2[i] = (uint32_t)(one >> 32) ^ c3[i] ^ k1;
                c1[i] = (uint32_t)other, c3[i] = (uint32_t)one;
            }
        uint32_t *to = out + 4 * first;
        for (int64_t i = 0; i < count; i++)
            to[4 * i] = c0[i], to[4 * i + 1] = c1[i], to[4 * i + 2] = c2[i], to[4 * i + 3] = c3[i];
    }
}
