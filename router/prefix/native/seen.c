/* Two Bloom filters of recent blocks, of which the older makes room for the next. */
#include "table.h"

enum { NUM_PROBES = 6 };

static void probe(const uint8_t *hashes, uint64_t block, uint64_t mask, uint64_t *bits) {
    uint64_t one, two;
    memcpy(&one, hashes + block * HASH_BYTES, 8);
    memcpy(&two, hashes + block * HASH_BYTES + 8, 8);
    for (uint64_t i = 0; i < NUM_PROBES; i++) bits[i] = (one + i * (two | 1)) & mask;
}

static int has(const uint64_t *filter, const uint64_t *bits) {
    int all = 1;
    for (int i = 0; i < NUM_PROBES; i++) all &= (int)(filter[bits[i] / 64] >> bits[i] % 64 & 1);
    return all;
}

/* How many leading blocks either filter has; then the newer has them all. `num_added` counts those
 * that it had not. */
uint64_t baton_prefix_see(uint64_t *newer, const uint64_t *older, uint64_t mask,
                          const uint8_t *hashes, uint64_t num, uint64_t *num_added) {
    uint64_t num_seen = 0, bits[NUM_PROBES], later[NUM_PROBES];
    for (uint64_t block = 0; block < num; block++) {
        if (block + 4 < num) {
            probe(hashes, block + 4, mask, later);
            for (int i = 0; i < NUM_PROBES; i++) __builtin_prefetch(&newer[later[i] / 64], 1);
        }
        probe(hashes, block, mask, bits);
        int is_newer = has(newer, bits);
        if (num_seen == block) num_seen += is_newer || has(older, bits);
        if (is_newer) continue;
        ++*num_added;
        for (int i = 0; i < NUM_PROBES; i++) newer[bits[i] / 64] |= 1ull << bits[i] % 64;
    }
    return num_seen;
}
