/* Pieces of KV blocks' slots: ranges copied, their sums taken. Used by share.c and flow.c too. */
#pragma once
#include <stdint.h>
#include <time.h>

#include "hash.h"
#include "words.h"

/* Kinds of sums; the numbers of kvtransfer/native/library.py. */
enum { HASHED = 0, WORDS = 1 };

/* One sum of a piece under way, of either kind. */
typedef struct {
    Hash hash;
    WordSum words;
    int64_t kind;
} Sum;

void baton_kv_sum_begin(Sum *sum, int64_t kind);

/* Take in `size` bytes at `from`, multiples of 8 where words are summed, and copy them to `into`
 * unless it is null; `streaming` stores past the cache. */
void baton_kv_sum_take(Sum *sum, uint8_t *into, const uint8_t *from, int64_t size, int streaming);

uint64_t baton_kv_sum_finish(Sum *sum);

/* Copies the ranges of one piece from `source` to `target`, or only sums when `target` is null. */
uint64_t baton_kv_piece(uint8_t *target, const int64_t *target_offsets, const uint8_t *source,
                        const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                        int64_t kind, int streaming);

/* 0, or why not: 1, a range lies outside its span, or a piece's ranges outside all; 2, the sum
 * takes no such ranges. Adds up `num_bytes`, unless 1. Without `target_offsets` only the source. */
int baton_kv_check(uint64_t target_bytes, const int64_t *target_offsets, uint64_t source_bytes,
                   const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                   const int64_t *starts, int64_t num_pieces, int64_t kind, int64_t *num_bytes);

/* Copies all ranges and sets sums[piece]; without `target_offsets` only sums. Answers as
 * `baton_kv_check`; nothing is touched unless everything fits. */
int baton_kv_copy(uint8_t *target, uint64_t target_bytes, const int64_t *target_offsets,
                  const uint8_t *source, uint64_t source_bytes, const int64_t *source_offsets,
                  const int64_t *sizes, int64_t num_ranges, const int64_t *starts,
                  int64_t num_pieces, int64_t kind, uint64_t *sums);

/* From now on, copies of so many bytes in one call and more are stored past the cache. To be called
 * while nothing is copied: to measure. */
void baton_kv_stream_from(int64_t num_bytes);

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
