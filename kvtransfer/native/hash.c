/* XXH3 with 64 bits, seed 0, default secret (Collet,
 * https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), of ranges one after another that
 * are copied in the same pass: hashed in registers, and stored past the cache when that is wanted.
 * Little-endian processors only.
 */
#include "hash.h"

#include "lines.h"

enum { STRIPE = LINE, STRIPES_PER_BLOCK = 16, SECRET_BYTES = 192 };
enum { AHEAD = 1024 }; /* prefetched: 0.073 CPU s/GB for 32 KiB blocks, 0.077 at 512 */

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
static const uint64_t P64_5 = 0x27D4EB2F165667C5ULL, MIX_2 = 0x9FB21C651E98DF25ULL;

static inline uint64_t word(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t half_word(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t folded(uint64_t a, uint64_t b) {
    const __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t rotated(uint64_t value, int bits) {
    return value << bits | value >> (64 - bits);
}

static inline uint64_t avalanche(uint64_t value) {
    value ^= value >> 37;
    value *= 0x165667919E3779F9ULL;
    return value ^ (value >> 32);
}

/* That of XXH64, for up to three bytes. */
static inline uint64_t older_avalanche(uint64_t value) {
    value = (value ^ (value >> 33)) * P64_2;
    value = (value ^ (value >> 29)) * P64_3;
    return value ^ (value >> 32);
}

/* Two words with two of the secret. */
static inline uint64_t mixed(const uint8_t *at, const uint8_t *secret) {
    return folded(word(at) ^ word(secret), word(at + 8) ^ word(secret + 8));
}

static uint64_t of_16(const uint8_t *at, uint64_t size) {
    if (size > 8) {
        const uint64_t low = word(at) ^ word(SECRET + 24) ^ word(SECRET + 32);
        const uint64_t high = word(at + size - 8) ^ word(SECRET + 40) ^ word(SECRET + 48);
        return avalanche(size + __builtin_bswap64(low) + high + folded(low, high));
    }
    if (size > 3) {
        uint64_t both = half_word(at + size - 4) + (half_word(at) << 32);
        both ^= word(SECRET + 8) ^ word(SECRET + 16);
        both ^= rotated(both, 49) ^ rotated(both, 24);
        both *= MIX_2;
        both = (both ^ ((both >> 35) + size)) * MIX_2;
        return both ^ (both >> 28);
    }
    if (size == 0) return older_avalanche(word(SECRET + 56) ^ word(SECRET + 64));
    const uint64_t first = at[0], middle = at[size / 2], last = at[size - 1];
    const uint64_t all = first << 16 | middle << 24 | last | size << 8;
    return older_avalanche(all ^ half_word(SECRET) ^ half_word(SECRET + 4));
}

static uint64_t of_128(const uint8_t *at, uint64_t size) {
    uint64_t sum = size * P64_1;
    for (uint64_t i = 0; i <= (size - 1) / 32; i++)
        sum += mixed(at + 16 * i, SECRET + 32 * i) +
               mixed(at + size - 16 * (i + 1), SECRET + 32 * i + 16);
    return avalanche(sum);
}

static uint64_t of_240(const uint8_t *at, uint64_t size) {
    uint64_t sum = size * P64_1;
    for (int i = 0; i < 8; i++) sum += mixed(at + 16 * i, SECRET + 16 * i);
    sum = avalanche(sum);
    for (uint64_t i = 8; i < size / 16; i++) sum += mixed(at + 16 * i, SECRET + 16 * (i - 8) + 3);
    return avalanche(sum + mixed(at + size - 16, SECRET + 119));
}

static inline Line accumulated(Line lanes, Line stripe, const uint8_t *secret) {
    const Line product = halves_product(xored(stripe, line_at(secret)));
    return plus(lanes, plus(product, swapped(stripe)));
}

static inline Line scrambled(Line lanes) {
    const Line secret = line_at(SECRET + SECRET_BYTES - STRIPE);
    return times(xored(xored(lanes, shifted_right(lanes, 47)), secret), P32_1);
}

/* Stripes `first` to `last` of a block, the first at `from`. */
static inline __attribute__((always_inline)) Line with_stripes(
    Line lanes, uint8_t *into, const uint8_t *from, int first, int last, int streaming) {
    for (int i = first; i < last; i++, from += STRIPE) {
        __builtin_prefetch(from + AHEAD);
        const Line stripe = line_at(from);
        pass_line(into, stripe, streaming);
        if (into) into += STRIPE;
        lanes = accumulated(lanes, stripe, SECRET + 8 * i);
    }
    return lanes;
}

/* `num` stripes, none of them the last of all, with the lanes in registers; blocks in step with the
 * hash's in a loop of known length. */
static inline __attribute__((always_inline)) void in_registers(
    Hash *hash, uint8_t *into, const uint8_t *from, int64_t num, int streaming) {
    Line lanes = line_at(hash->lanes);
    int first = (int)(hash->num_stripes % STRIPES_PER_BLOCK);
    hash->num_stripes += (uint64_t)num;
    while (num > 0) {
        int last = STRIPES_PER_BLOCK;
        if (first == 0 && num >= STRIPES_PER_BLOCK) {
            lanes = with_stripes(lanes, into, from, 0, STRIPES_PER_BLOCK, streaming);
        } else {
            if (num < last - first) last = first + (int)num;
            lanes = with_stripes(lanes, into, from, first, last, streaming);
        }
        if (last == STRIPES_PER_BLOCK) lanes = scrambled(lanes);
        from += (last - first) * STRIPE;
        if (into) into += (last - first) * STRIPE;
        num -= last - first;
        first = 0;
    }
    put_line(hash->lanes, lanes);
}

static void take_stripes(Hash *hash, uint8_t *into, const uint8_t *from, int64_t num,
                         int streaming) {
    if (!into)
        in_registers(hash, 0, from, num, 0);
    else if (streaming && can_stream(into))
        in_registers(hash, into, from, num, 1);
    else
        in_registers(hash, into, from, num, 0);
}

/* Keep bytes for which there is room. */
static void keep(Hash *hash, uint8_t *into, const uint8_t *from, int64_t size) {
    uint8_t *const kept = hash->kept + hash->num_kept;
    memcpy(kept, from, (size_t)size);
    if (into) memcpy(into, kept, (size_t)size);
    hash->num_kept += size;
}

void baton_kv_hash_begin(Hash *hash) {
    const uint64_t start[LINE_WORDS] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
    memcpy(hash->lanes, start, sizeof start);
    hash->num_kept = 0;
    hash->num_stripes = hash->num_bytes = 0;
}

void baton_kv_hash_take(Hash *hash, uint8_t *into, const uint8_t *from, int64_t size,
                        int streaming) {
    hash->num_bytes += (uint64_t)size;
    if (hash->num_bytes <= KEPT_BYTES || hash->num_kept + size < 2 * STRIPE) {
        keep(hash, into, from, size);
        return;
    }
    /* One stripe or more, but not two, stays kept; of the others, first those that begin there. */
    const int64_t num = (hash->num_kept + size) / STRIPE - 1;
    int64_t of_kept = (hash->num_kept + STRIPE - 1) / STRIPE;
    if (of_kept > num) of_kept = num;
    const int64_t missing = of_kept * STRIPE - hash->num_kept;
    if (missing > 0) {
        keep(hash, into, from, missing);
        from += missing;
        size -= missing;
        if (into) into += missing;
    }
    take_stripes(hash, 0, hash->kept, of_kept, 0);
    hash->num_kept -= of_kept * STRIPE;
    memmove(hash->kept, hash->kept + of_kept * STRIPE, (size_t)hash->num_kept);
    const int64_t in_place = (num - of_kept) * STRIPE;
    take_stripes(hash, into, from, num - of_kept, streaming);
    keep(hash, into ? into + in_place : 0, from + in_place, size - in_place);
}

uint64_t baton_kv_hash_finish(Hash *hash) {
    const uint64_t size = hash->num_bytes;
    if (size <= 16) return of_16(hash->kept, size);
    if (size <= 128) return of_128(hash->kept, size);
    if (size <= 240) return of_240(hash->kept, size);
    take_stripes(hash, 0, hash->kept, (hash->num_kept - 1) / STRIPE, 0);
    const uint8_t *const stripe = hash->kept + hash->num_kept - STRIPE;
    put_line(hash->lanes, accumulated(line_at(hash->lanes), line_at(stripe),
                                      SECRET + SECRET_BYTES - STRIPE - 7));
    uint64_t sum = size * P64_1;
    for (int i = 0; i < 4; i++)
        sum += folded(hash->lanes[2 * i] ^ word(SECRET + 11 + 16 * i),
                      hash->lanes[2 * i + 1] ^ word(SECRET + 19 + 16 * i));
    return avalanche(sum);
}
