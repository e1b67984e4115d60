/* The hash xxh3_64 of a piece's bytes, taken as they are copied. */
#pragma once
#include <stdint.h>

enum { KEPT_BYTES = 256 };

/* One hash under way. `kept` are the bytes that came last: all of an input that is short, and
 * otherwise at least the last stripe, which is treated apart. */
typedef struct {
    uint64_t lanes[8] __attribute__((aligned(64)));
    uint8_t kept[KEPT_BYTES];
    int64_t num_kept;
    uint64_t num_stripes, num_bytes;
} Hash;

void baton_kv_hash_begin(Hash *hash);

/* Take in `size` bytes at `from`, and copy them to `into` unless it is null; `streaming` stores
 * past the cache. Each byte is read once, so what is hashed is what was copied. */
void baton_kv_hash_take(Hash *hash, uint8_t *into, const uint8_t *from, int64_t size,
                        int streaming);

/* Of all that was taken in; the hash is spent. */
uint64_t baton_kv_hash_finish(Hash *hash);
