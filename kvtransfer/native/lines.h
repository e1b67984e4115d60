/* Lines of 64 bytes in registers, by the widest instructions that the target has: AVX-512, AVX2,
 * NEON, or none. What the hash of hash.c and the sum of words.c do to one is written here once for
 * each; nothing else in the library knows how wide a register is. */
#pragma once
#include <stdint.h>
#include <string.h>

enum { LINE = 64, LINE_WORDS = 8 };

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include <immintrin.h>

enum { STREAM_ALIGN = 64 }; /* of what is stored past the cache */
typedef __m512i Line;

static inline Line line_at(const void *from) { return _mm512_loadu_si512(from); }

static inline void put_line(void *into, Line line) { _mm512_storeu_si512(into, line); }

static inline void stream_line(void *into, Line line) { _mm512_stream_si512(into, line); }

static inline Line line_of(uint64_t word) { return _mm512_set1_epi64((long long)word); }

static inline Line plus(Line a, Line b) { return _mm512_add_epi64(a, b); }

static inline Line xored(Line a, Line b) { return _mm512_xor_si512(a, b); }

#define shifted_right(line, bits) _mm512_srli_epi64(line, bits)

/* Each word's low half times its high half. */
static inline Line halves_product(Line a) { return _mm512_mul_epu32(a, _mm512_srli_epi64(a, 32)); }

/* Each two neighbouring words in the other order. */
static inline Line swapped(Line a) { return _mm512_shuffle_epi32(a, _MM_PERM_BADC); }

static inline Line times(Line a, uint64_t factor) { return _mm512_mullo_epi64(a, line_of(factor)); }

#elif defined(__AVX2__)
#include <immintrin.h>

enum { STREAM_ALIGN = 32 };
typedef struct {
    __m256i low, high;
} Line;

static inline Line line_at(const void *from) {
    const __m256i *const at = from;
    return (Line){_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}

static inline void put_line(void *into, Line line) {
    __m256i *const at = into;
    _mm256_storeu_si256(at, line.low);
    _mm256_storeu_si256(at + 1, line.high);
}

static inline void stream_line(void *into, Line line) {
    __m256i *const at = into;
    _mm256_stream_si256(at, line.low);
    _mm256_stream_si256(at + 1, line.high);
}

static inline Line line_of(uint64_t word) {
    const __m256i words = _mm256_set1_epi64x((long long)word);
    return (Line){words, words};
}

static inline Line plus(Line a, Line b) {
    return (Line){_mm256_add_epi64(a.low, b.low), _mm256_add_epi64(a.high, b.high)};
}

static inline Line xored(Line a, Line b) {
    return (Line){_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}

#define shifted_right(line, bits) \
    ((Line){_mm256_srli_epi64((line).low, bits), _mm256_srli_epi64((line).high, bits)})

static inline __m256i halves_product_4(__m256i a) {
    return _mm256_mul_epu32(a, _mm256_srli_epi64(a, 32));
}

static inline Line halves_product(Line a) {
    return (Line){halves_product_4(a.low), halves_product_4(a.high)};
}

static inline Line swapped(Line a) {
    enum { OTHER_ORDER = _MM_SHUFFLE(1, 0, 3, 2) };
    return (Line){_mm256_shuffle_epi32(a.low, OTHER_ORDER),
                  _mm256_shuffle_epi32(a.high, OTHER_ORDER)};
}

/* It multiplies 32 bits alone: three products, of which the high ones are cut. */
static inline __m256i times_4(__m256i a, uint64_t factor) {
    const __m256i low = _mm256_set1_epi64x((long long)factor);
    const __m256i high = _mm256_set1_epi64x((long long)(factor >> 32));
    const __m256i cross = _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), low),
                                           _mm256_mul_epu32(a, high));
    return _mm256_add_epi64(_mm256_mul_epu32(a, low), _mm256_slli_epi64(cross, 32));
}

static inline Line times(Line a, uint64_t factor) {
    return (Line){times_4(a.low, factor), times_4(a.high, factor)};
}

#elif defined(__ARM_NEON)
#include <arm_neon.h>

enum { STREAM_ALIGN = 1, PARTS = 4 };
typedef struct {
    uint64x2_t part[PARTS];
} Line;

#define OF_PARTS(expression)              \
    Line made;                            \
    for (int i = 0; i < PARTS; i++) made.part[i] = (expression); \
    return made

static inline Line line_at(const void *from) {
    OF_PARTS(vreinterpretq_u64_u8(vld1q_u8((const uint8_t *)from + 16 * i)));
}

static inline void put_line(void *into, Line line) {
    for (int i = 0; i < PARTS; i++)
        vst1q_u8((uint8_t *)into + 16 * i, vreinterpretq_u8_u64(line.part[i]));
}

static inline void stream_line(void *into, Line line) { put_line(into, line); }

static inline Line line_of(uint64_t word) { OF_PARTS(vdupq_n_u64(word)); }

static inline Line plus(Line a, Line b) { OF_PARTS(vaddq_u64(a.part[i], b.part[i])); }

static inline Line xored(Line a, Line b) { OF_PARTS(veorq_u64(a.part[i], b.part[i])); }

static inline Line shifted_right(Line a, int bits) {
    OF_PARTS(vshlq_u64(a.part[i], vdupq_n_s64(-bits)));
}

static inline Line halves_product(Line a) {
    OF_PARTS(vmull_u32(vmovn_u64(a.part[i]), vshrn_n_u64(a.part[i], 32)));
}

static inline Line swapped(Line a) { OF_PARTS(vextq_u64(a.part[i], a.part[i], 1)); }

static inline uint64x2_t times_2(uint64x2_t a, uint64_t factor) {
    const uint32x2_t low = vdup_n_u32((uint32_t)factor);
    const uint32x2_t high = vdup_n_u32((uint32_t)(factor >> 32));
    const uint32x2_t a_low = vmovn_u64(a);
    const uint64x2_t cross = vmlal_u32(vmull_u32(vshrn_n_u64(a, 32), low), a_low, high);
    return vmlal_u32(vshlq_n_u64(cross, 32), a_low, low);
}

static inline Line times(Line a, uint64_t factor) { OF_PARTS(times_2(a.part[i], factor)); }

#else

enum { STREAM_ALIGN = 1 };
typedef struct {
    uint64_t word[LINE_WORDS];
} Line;

#define OF_WORDS(expression)                                       \
    Line made;                                                     \
    for (int i = 0; i < LINE_WORDS; i++) made.word[i] = (expression); \
    return made

static inline Line line_at(const void *from) {
    Line line;
    memcpy(&line, from, LINE);
    return line;
}

static inline void put_line(void *into, Line line) { memcpy(into, &line, LINE); }

static inline void stream_line(void *into, Line line) { put_line(into, line); }

static inline Line line_of(uint64_t word) { OF_WORDS(word); }

static inline Line plus(Line a, Line b) { OF_WORDS(a.word[i] + b.word[i]); }

static inline Line xored(Line a, Line b) { OF_WORDS(a.word[i] ^ b.word[i]); }

static inline Line shifted_right(Line a, int bits) { OF_WORDS(a.word[i] >> bits); }

static inline Line halves_product(Line a) {
    OF_WORDS((a.word[i] & 0xFFFFFFFFU) * (a.word[i] >> 32));
}

static inline Line swapped(Line a) { OF_WORDS(a.word[i ^ 1]); }

static inline Line times(Line a, uint64_t factor) { OF_WORDS(a.word[i] * factor); }

#endif

/* Copies a line when there is somewhere to. */
static inline void pass_line(uint8_t *into, Line line, int streaming) {
    if (!into) return;
    if (streaming)
        stream_line(into, line);
    else
        put_line(into, line);
}

/* Whether lines may be stored past the cache there: the target has such stores, and they fit. */
static inline int can_stream(const uint8_t *into) {
    return ((uintptr_t)into & (STREAM_ALIGN - 1)) == 0;
}
