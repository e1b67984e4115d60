/* Scattered copies of KV blocks between two mapped pools, each piece's xxh3_64 taken on the way.
 *
 * One pass over memory instead of two: the bytes are hashed in registers while they are copied,
 * and stored past the cache (the next reader is an attention kernel, much later). The hash is
 * XXH3 with 64 bits, seed 0, default secret, of inputs above 240 bytes (Collet,
 * https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md); tests compare it with the
 * library's. Called through kvtransfer/native/copy.py, which checks every bound first.
 */
#include "copy.h"

#include "lines.h"

enum { STRIPE = LINE, STRIPES_PER_BLOCK = 16, SECRET_BYTES = 192 };
enum { MIN_BYTES = 241 };         /* XXH3 treats shorter inputs in another way */
enum { AHEAD = 1024 };            /* prefetched: 0.073 CPU s/GB for 32 KiB blocks, 0.077 at 512 */
enum { STREAMED_BYTES = 256 << 10 }; /* copies below this still fit into the cache */
enum { OUTSIDE = 1, UNFIT = 2 };

static const uint8_t SECRET[SECRET_BYTES] __attribute__((aligned(64))) = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
_Static_assert(sizeof SECRET == SECRET_BYTES, "the secret has 192 bytes");

static const uint64_t P32_1 = 0x9E3779B1U, P32_2 = 0x85EBCA77U, P32_3 = 0xC2B2AE3DU;
static const uint64_t P64_1 = 0x9E3779B185EBCA87ULL, P64_2 = 0xC2B2AE3D27D4EB4FULL;
static const uint64_t P64_3 = 0x165667B19E3779F9ULL, P64_4 = 0x85EBCA77C2B2AE63ULL;
static const uint64_t P64_5 = 0x27D4EB2F165667C5ULL;

static inline uint64_t word(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static void begin(Hash *hash) {
    const uint64_t start[LINE_WORDS] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
    memcpy(hash->lanes, start, sizeof start);
    hash->held = 0;
    hash->num_stripes = hash->num_bytes = 0;
}

static inline Line accumulated(Line lanes, Line stripe, const uint8_t *secret) {
    const Line product = halves_product(xored(stripe, line_at(secret)));
    return plus(lanes, plus(product, swapped(stripe)));
}

static inline Line scrambled(Line lanes) {
    const Line secret = line_at(SECRET + SECRET_BYTES - STRIPE);
    return times(xored(xored(lanes, shifted_right(lanes, 47)), secret), P32_1);
}

static inline void accumulate(Hash *hash, const uint8_t *stripe, const uint8_t *secret) {
    put_line(hash->lanes, accumulated(line_at(hash->lanes), line_at(stripe), secret));
}

static inline void scramble(Hash *hash) { put_line(hash->lanes, scrambled(line_at(hash->lanes))); }

/* Take in the held stripe, now known not to be the last, and hold `stripe`. */
static inline void add(Hash *hash, const uint8_t *stripe) {
    if (hash->held) {
        const uint64_t at = hash->num_stripes % STRIPES_PER_BLOCK;
        accumulate(hash, hash->held, SECRET + 8 * at);
        hash->num_stripes++;
        if (at == STRIPES_PER_BLOCK - 1) scramble(hash);
    }
    hash->held = stripe;
    hash->num_bytes += STRIPE;
}

static inline uint64_t folded(uint64_t a, uint64_t b) {
    const __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t finish(Hash *hash) {
    accumulate(hash, hash->held, SECRET + SECRET_BYTES - STRIPE - 7);
    uint64_t result = hash->num_bytes * P64_1;
    for (int i = 0; i < 4; i++)
        result += folded(hash->lanes[2 * i] ^ word(SECRET + 11 + 16 * i),
                         hash->lanes[2 * i + 1] ^ word(SECRET + 19 + 16 * i));
    result ^= result >> 37;
    result *= 0x165667919E3779F9ULL;
    return result ^ (result >> 32);
}

/* Copies (when `into` is given) and hashes `num_blocks` kibibytes that are not the last ones, with
 * the lanes in registers; the first stripe is not yet held. */
static inline __attribute__((always_inline)) void bulk(
    Hash *hash, uint8_t *into, const uint8_t *from, uint64_t num_blocks, int streaming) {
    Line lanes = line_at(hash->lanes);
    for (uint64_t block = 0; block < num_blocks; block++) {
        for (int i = 0; i < STRIPES_PER_BLOCK; i++, from += STRIPE) {
            __builtin_prefetch(from + AHEAD);
            const Line stripe = line_at(from);
            pass_line(into, stripe, streaming);
            if (into) into += STRIPE;
            lanes = accumulated(lanes, stripe, SECRET + 8 * i);
        }
        lanes = scrambled(lanes);
    }
    put_line(hash->lanes, lanes);
    hash->num_stripes += num_blocks * STRIPES_PER_BLOCK;
    hash->num_bytes += num_blocks * STRIPES_PER_BLOCK * STRIPE;
}

/* Hash `size` bytes (a multiple of 64) at `from`, and copy them to `into` unless it is null. */
static void take(Hash *hash, uint8_t *into, const uint8_t *from, int64_t size, int streaming) {
    int64_t at = 0;
    /* In step with the blocks of the hash, a run of whole blocks goes through registers. The held
     * stripe must be taken in first, and one stripe stays to be held. */
    while (at < size && (hash->held == 0 ? hash->num_stripes : hash->num_stripes + 1)
                                % STRIPES_PER_BLOCK != 0) {
        if (into) memcpy(into + at, from + at, STRIPE);
        add(hash, from + at);
        at += STRIPE;
    }
    const int64_t num_blocks = (size - at - 1) / (STRIPES_PER_BLOCK * STRIPE);
    if (at < size && num_blocks > 0) {
        if (hash->held) {
            accumulate(hash, hash->held, SECRET + 8 * (STRIPES_PER_BLOCK - 1));
            hash->num_stripes++;
            scramble(hash);
            hash->held = 0;
        }
        uint8_t *const target = into ? into + at : 0;
        if (!target)
            bulk(hash, 0, from + at, (uint64_t)num_blocks, 0);
        else if (streaming && can_stream(target))
            bulk(hash, target, from + at, (uint64_t)num_blocks, 1);
        else
            bulk(hash, target, from + at, (uint64_t)num_blocks, 0);
        at += num_blocks * STRIPES_PER_BLOCK * STRIPE;
    }
    for (; at < size; at += STRIPE) {
        if (into) memcpy(into + at, from + at, STRIPE);
        add(hash, from + at);
    }
}

uint64_t baton_kv_piece(uint8_t *target, const int64_t *target_offsets, const uint8_t *source,
                        const int64_t *source_offsets, const int64_t *sizes, int64_t num_ranges,
                        int streaming) {
    Hash hash;
    begin(&hash);
    for (int64_t range = 0; range < num_ranges; range++)
        take(&hash, target ? target + target_offsets[range] : 0, source + source_offsets[range],
             sizes[range], streaming);
    return finish(&hash);
}

void baton_kv_settle(void) {
#ifdef __x86_64__
    __builtin_ia32_sfence();
#endif
}

void baton_kv_hash_begin(Hash *hash) { begin(hash); }

void baton_kv_hash_take(Hash *hash, const uint8_t *from, int64_t size) {
    take(hash, 0, from, size, 0);
}

uint64_t baton_kv_hash_finish(Hash *hash) { return finish(hash); }

int baton_kv_check(uint64_t target_bytes, const int64_t *target_offsets, uint64_t source_bytes,
                   const int64_t *source_offsets, const int64_t *sizes, const int64_t *starts,
                   int64_t num_pieces, int64_t *num_bytes) {
    int unfit = 0;
    for (int64_t piece = 0; piece < num_pieces; piece++) {
        const int64_t before = *num_bytes;
        for (int64_t range = starts[piece]; range < starts[piece + 1]; range++) {
            if (!lies_in(source_offsets[range], sizes[range], source_bytes) ||
                (target_offsets && !lies_in(target_offsets[range], sizes[range], target_bytes)))
                return OUTSIDE;
            unfit |= sizes[range] % STRIPE != 0;
            *num_bytes += sizes[range];
        }
        unfit |= *num_bytes - before < MIN_BYTES;
    }
    return unfit ? UNFIT : 0;
}

/* Copy all ranges and set sums[piece]; without `target_offsets` only hash. Nothing is touched
 * unless everything fits. */
int baton_kv_copy(uint8_t *target, uint64_t target_bytes, const int64_t *target_offsets,
                  const uint8_t *source, uint64_t source_bytes, const int64_t *source_offsets,
                  const int64_t *sizes, const int64_t *starts, int64_t num_pieces,
                  uint64_t *sums) {
    int64_t num_bytes = 0;
    const int why_not = baton_kv_check(target_bytes, target_offsets, source_bytes, source_offsets,
                                       sizes, starts, num_pieces, &num_bytes);
    if (why_not) return why_not;
    const int streaming = num_bytes >= STREAMED_BYTES;
    for (int64_t piece = 0; piece < num_pieces; piece++) {
        const int64_t first = starts[piece];
        sums[piece] = baton_kv_piece(target_offsets ? target : 0,
                                     target_offsets ? target_offsets + first : 0, source,
                                     source_offsets + first, sizes + first,
                                     starts[piece + 1] - first, streaming);
    }
    baton_kv_settle();
    return 0;
}
