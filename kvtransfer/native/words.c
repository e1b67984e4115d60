/* Scattered copies of KV blocks with the sums of kvtransfer/kernels/copy.py.
 *
 * A piece of words w_0, w_1, ... sums to the sum over i of mix(w_i + (i + 1) * GAMMA), where mix
 * is the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): what a GPU's threads can take
 * in any order. Called through kvtransfer/native/copy.py.
 */
#include "words.h"

#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "copy.h"

enum { WORD = 8, LINE = 64, GRAIN = 16, AHEAD = 1024, STREAMED_BYTES = 256 << 10 };
enum { OUTSIDE = 1, UNFIT = 2 };

static const uint64_t GAMMA = 0x9E3779B97F4A7C15ULL;
static const uint64_t FIRST = 0xBF58476D1CE4E5B9ULL, SECOND = 0x94D049BB133111EBULL;

static inline uint64_t mixed(uint64_t z) {
    z = (z ^ (z >> 30)) * FIRST;
    z = (z ^ (z >> 27)) * SECOND;
    return z ^ (z >> 31);
}

#ifdef __AVX2__
/* The low halves of four products with a constant: AVX2 multiplies only 32 bits. */
static inline __m256i times(__m256i a, __m256i low, __m256i high) {
    const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), low),
                                           _mm256_mul_epu32(a, high));
    return _mm256_add_epi64(_mm256_mul_epu32(a, low), _mm256_slli_epi64(cross, 32));
}

static inline __m256i mixed_4(__m256i z) {
    const __m256i first = _mm256_set1_epi64x((long long)FIRST);
    const __m256i second = _mm256_set1_epi64x((long long)SECOND);
    const __m256i first_high = _mm256_srli_epi64(first, 32);
    const __m256i second_high = _mm256_srli_epi64(second, 32);
    z = times(_mm256_xor_si256(z, _mm256_srli_epi64(z, 30)), first, first_high);
    z = times(_mm256_xor_si256(z, _mm256_srli_epi64(z, 27)), second, second_high);
    return _mm256_xor_si256(z, _mm256_srli_epi64(z, 31));
}

static inline void store_4(uint8_t *into, __m256i words, int streaming) {
    if (streaming)
        _mm256_stream_si256((__m256i *)into, words);
    else
        _mm256_storeu_si256((__m256i *)into, words);
}

/* Whole lines of 64 bytes; the sum of their words, of which the first has this number. */
static inline __attribute__((always_inline)) uint64_t take_lines(
    uint64_t number, uint8_t *into, const uint8_t *from, int64_t num_lines, int streaming) {
    const __m256i step = _mm256_set1_epi64x((long long)(4 * GAMMA));
    __m256i salt = _mm256_set_epi64x(
        (long long)((number + 4) * GAMMA), (long long)((number + 3) * GAMMA),
        (long long)((number + 2) * GAMMA), (long long)((number + 1) * GAMMA));
    __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
    for (int64_t line = 0; line < num_lines; line++, from += LINE) {
        _mm_prefetch((const char *)from + AHEAD, _MM_HINT_T0);
        const __m256i a = _mm256_loadu_si256((const __m256i *)from);
        const __m256i b = _mm256_loadu_si256((const __m256i *)(from + 32));
        if (into) {
            store_4(into, a, streaming);
            store_4(into + 32, b, streaming);
            into += LINE;
        }
        low = _mm256_add_epi64(low, mixed_4(_mm256_add_epi64(a, salt)));
        salt = _mm256_add_epi64(salt, step);
        high = _mm256_add_epi64(high, mixed_4(_mm256_add_epi64(b, salt)));
        salt = _mm256_add_epi64(salt, step);
    }
    uint64_t lanes[4];
    _mm256_storeu_si256((__m256i *)lanes, _mm256_add_epi64(low, high));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}
#endif

void baton_kv_take_words(WordSum *sum, uint8_t *into, const uint8_t *from, int64_t size,
                         int streaming) {
    int64_t at = 0;
#ifdef __AVX2__
    const int64_t num_lines = size / LINE;
    if (!into)
        sum->sum += take_lines(sum->number, 0, from, num_lines, 0);
    else if (streaming && ((uintptr_t)into & 31) == 0)
        sum->sum += take_lines(sum->number, into, from, num_lines, 1);
    else
        sum->sum += take_lines(sum->number, into, from, num_lines, 0);
    at = num_lines * LINE;
    sum->number += (uint64_t)(at / WORD);
#endif
    for (; at < size; at += WORD) {
        uint64_t word;
        memcpy(&word, from + at, WORD);
        if (into) memcpy(into + at, &word, WORD);
        sum->sum += mixed(word + ++sum->number * GAMMA);
    }
    (void)streaming;
}

/* 0, or why not: 1, a range lies outside its span; 2, the sum takes no such ranges. */
static int why_not(uint64_t target_bytes, const int64_t *target_offsets, uint64_t source_bytes,
                   const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                   int64_t *num_bytes) {
    int unfit = 0;
    for (int64_t range = 0; range < num_ranges; range++) {
        if (!lies_in(source_offsets[range], sizes[range], source_bytes) ||
            (target_offsets && !lies_in(target_offsets[range], sizes[range], target_bytes)))
            return OUTSIDE;
        unfit |= sizes[range] % GRAIN != 0;
        *num_bytes += sizes[range];
    }
    return unfit ? UNFIT : 0;
}

/* Copy all ranges and set sums[piece]; without `target_offsets` only sum. Nothing is touched
 * unless everything fits. */
int baton_kv_copy_words(uint8_t *target, uint64_t target_bytes, const int64_t *target_offsets,
                        const uint8_t *source, uint64_t source_bytes,
                        const int64_t *source_offsets, const int64_t *sizes,
                        const int64_t *starts, int64_t num_pieces, uint64_t *sums) {
    int64_t num_bytes = 0;
    const int answer = why_not(target_bytes, target_offsets, source_bytes, source_offsets, sizes,
                               starts[num_pieces], &num_bytes);
    if (answer) return answer;
    const int streaming = num_bytes >= STREAMED_BYTES;
    for (int64_t piece = 0; piece < num_pieces; piece++) {
        WordSum sum = {0, 0};
        for (int64_t range = starts[piece]; range < starts[piece + 1]; range++)
            baton_kv_take_words(&sum, target_offsets ? target + target_offsets[range] : 0,
                                source + source_offsets[range], sizes[range], streaming);
        sums[piece] = sum.sum;
    }
    baton_kv_settle();
    return 0;
}
