/* The sum of a piece's words that devices take too, on hosts. */
#pragma once
#include <stdint.h>

/* One sum under way. */
typedef struct {
    uint64_t sum;
    uint64_t number; /* of the next word within its piece */
} WordSum;

/* Take in `size` bytes (a multiple of 8) at `from`, and copy them to `into` unless it is null;
 * `streaming` stores past the cache. */
void baton_kv_take_words(WordSum *sum, uint8_t *into, const uint8_t *from, int64_t size,
                         int streaming);
