/* Scattered copies of KV blocks between two mapped pools, each piece's sum taken on the way.
 *
 * One pass over memory instead of two: the bytes are summed in registers while they are copied,
 * and stored past the cache (the next reader is an attention kernel, much later). Called through
 * kvtransfer/native/copy.py.
 */
#include "copy.h"

static int64_t streamed_bytes = 256 << 10; /* copies below this still fit into the cache */
enum { GRAIN = 16 };                 /* what words are summed of */
enum { OUTSIDE = 1, UNFIT = 2 };

void baton_kv_sum_begin(Sum *sum, int64_t kind) {
    sum->kind = kind;
    if (kind == HASHED)
        baton_kv_hash_begin(&sum->hash);
    else
        sum->words = (WordSum){0, 0};
}

void baton_kv_sum_take(Sum *sum, uint8_t *into, const uint8_t *from, int64_t size, int streaming) {
    if (sum->kind == HASHED)
        baton_kv_hash_take(&sum->hash, into, from, size, streaming);
    else
        baton_kv_take_words(&sum->words, into, from, size, streaming);
}

uint64_t baton_kv_sum_finish(Sum *sum) {
    return sum->kind == HASHED ? baton_kv_hash_finish(&sum->hash) : sum->words.sum;
}

uint64_t baton_kv_piece(uint8_t *target, const int64_t *target_offsets, const uint8_t *source,
                        const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                        int64_t kind, int streaming) {
    Sum sum;
    baton_kv_sum_begin(&sum, kind);
    for (int64_t range = 0; range < num_ranges; range++)
        baton_kv_sum_take(&sum, target ? target + target_offsets[range] : 0,
                          source + source_offsets[range], sizes[range], streaming);
    return baton_kv_sum_finish(&sum);
}

void baton_kv_stream_from(int64_t num_bytes) { streamed_bytes = num_bytes; }

void baton_kv_settle(void) {
#ifdef __x86_64__
    __builtin_ia32_sfence();
#endif
}

int baton_kv_check(uint64_t target_bytes, const int64_t *target_offsets, uint64_t source_bytes,
                   const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                   const int64_t *starts, int64_t num_pieces, int64_t kind, int64_t *num_bytes) {
    int64_t all_sizes = 0;
    if (num_pieces < 0 || starts[0] != 0 || starts[num_pieces] != num_ranges) return OUTSIDE;
    for (int64_t piece = 0; piece < num_pieces; piece++)
        if (starts[piece + 1] < starts[piece]) return OUTSIDE;
    for (int64_t range = 0; range < num_ranges; range++) {
        if (!lies_in(source_offsets[range], sizes[range], source_bytes) ||
            (target_offsets && !lies_in(target_offsets[range], sizes[range], target_bytes)))
            return OUTSIDE;
        all_sizes |= sizes[range];
        *num_bytes += sizes[range];
    }
    return kind == WORDS && all_sizes % GRAIN ? UNFIT : 0;
}

int baton_kv_copy(uint8_t *target, uint64_t target_bytes, const int64_t *target_offsets,
                  const uint8_t *source, uint64_t source_bytes, const int64_t *source_offsets,
                  const int64_t *sizes, int64_t num_ranges, const int64_t *starts,
                  int64_t num_pieces, int64_t kind, uint64_t *sums) {
    int64_t num_bytes = 0;
    const int why_not = baton_kv_check(target_bytes, target_offsets, source_bytes, source_offsets,
                                       sizes, num_ranges, starts, num_pieces, kind, &num_bytes);
    if (why_not) return why_not;
    const int streaming = num_bytes >= streamed_bytes;
    for (int64_t piece = 0; piece < num_pieces; piece++) {
        const int64_t first = starts[piece];
        sums[piece] = baton_kv_piece(target_offsets ? target : 0,
                                     target_offsets ? target_offsets + first : 0, source,
                                     source_offsets + first, sizes + first,
                                     starts[piece + 1] - first, kind, streaming);
    }
    baton_kv_settle();
    return 0;
}
