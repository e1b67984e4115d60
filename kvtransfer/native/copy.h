/* Pieces of KV blocks' slots: ranges copied, xxh3_64 taken. Used by share.c and flow.c too. */
#pragma once
#include <stdint.h>
#include <time.h>

/* Copies the ranges of one piece (sizes are multiples of 64, more than 240 bytes in all) from
 * `source` to `target`, or only hashes when `target` is null. `streaming` stores past the cache. */
uint64_t baton_kv_piece(uint8_t *target, const int64_t *target_offsets, const uint8_t *source,
                        const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                        int streaming);

/* One hash under way. `held` is the newest stripe: the last of all is treated apart. */
typedef struct {
    uint64_t lanes[8] __attribute__((aligned(64)));
    const uint8_t *held;
    uint64_t num_stripes, num_bytes;
} Hash;

/* The same hash of a piece that comes bit by bit: each a multiple of 64 bytes, in place until the
 * next has been taken. */
void baton_kv_hash_begin(Hash *hash);
void baton_kv_hash_take(Hash *hash, const uint8_t *from, int64_t size);
uint64_t baton_kv_hash_finish(Hash *hash);

/* 0, or why not: 1, a range lies outside its span; 2, the hash takes no such pieces (short, or
 * not whole stripes). Adds up `num_bytes`, unless 1. Without `target_offsets` only the source. */
int baton_kv_check(uint64_t target_bytes, const int64_t *target_offsets, uint64_t source_bytes,
                   const int64_t *source_offsets, const int64_t *sizes, const int64_t *starts,
                   int64_t num_pieces, int64_t *num_bytes);

/* Makes streamed stores visible to other cores; call before telling anyone that bytes landed. */
void baton_kv_settle(void);

/* Whether a range lies inside a span of so many bytes. */
static inline int lies_in(int64_t offset, int64_t size, uint64_t bytes) {
    return offset >= 0 && size >= 0 && (uint64_t)size <= bytes &&
           (uint64_t)offset <= bytes - (uint64_t)size;
}

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}
