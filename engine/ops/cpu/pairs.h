/* Attention where q, k and v are bfloat16 and the CPU multiplies pairs of it (AVX512-BF16).
 *
 * Included by attention.c. Pages are read where they lie. A tile's keys are turned on their side
 * (pairs of dims by tokens), so that a score is a lane and needs no sum across lanes; values are
 * paired by token on the way into the product, and the dims of acc lie as that leaves them. */

struct page { /* where the tokens of a tile lie; those that nobody may see are zeros */
    const bf16 *keys[TILE], *values[TILE];
};

static const bf16 nothing[MAX_HEAD_DIM];

INLINE __mmask32 dims_from(long d, long D) {
    return D - d >= 32 ? 0xffffffffu : (__mmask32)((1u << (D - d)) - 1);
}

INLINE __m512i load_dims(const bf16 *row, long d, long D) {
    return _mm512_maskz_loadu_epi16(dims_from(d, D), row + d);
}

/* Tokens [low, high) of the tile at t0. */
INLINE void point(const struct rows *rows, const int32_t *table, long t0, long low, long high,
                  struct page *page) {
    const struct heads *heads = rows->heads;
    const long D = heads->head_dim, G = heads->num_kv_heads, B = heads->block_tokens;
    const bf16 *pool = (const bf16 *)heads->layer_pool + rows->kv_head * B * D;
    long t = 0, block = low / B, place = low % B;
    for (; t < low - t0; t++) page->keys[t] = page->values[t] = nothing;
    for (; t < high - t0; block++, place = 0) {
        const bf16 *key = pool + table[block] * heads->block_stride + place * D;
        for (; place < B && t < high - t0; place++, t++, key += D) {
            page->keys[t] = key, page->values[t] = key + G * B * D;
        }
    }
    for (; t < TILE; t++) page->keys[t] = page->values[t] = nothing;
}

/* out[j] = lane j of each of the 16 rows */
INLINE void turn_over(const __m512i row[16], __m512i out[16]) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < 4; j++) {
        __m512i even_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88);
        __m512i even_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        __m512i odd_low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        __m512i odd_high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        out[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
        out[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
        out[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
        out[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
    }
}

INLINE void fetch(const bf16 *row, long d) { _mm_prefetch((const char *)(row + d), _MM_HINT_T0); }

/* Keys as [P / 2 pairs of dims][TILE tokens]; those of the page `ahead` on their way. */
INLINE void turn_keys(const struct page *page, const struct page *ahead, long D, long P, long n,
                      int32_t *out) {
    for (long t = 0; t < n; t += 16)
        for (long d = 0; d < P; d += 32) {
            __m512i row[16], column[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                row[i] = load_dims(page->keys[t + i], d, D);
                fetch(ahead->keys[t + i], d);
            }
            turn_over(row, column);
#pragma GCC unroll 16
            for (int j = 0; j < 16; j++)
                _mm512_store_si512(out + (d / 2 + j) * TILE + t, column[j]);
        }
}

INLINE __m512bh pair(const bf16 *at) {
    int32_t both;
    memcpy(&both, at, 4);
    return (__m512bh)_mm512_set1_epi32(both);
}

/* score[r][t] = scale * q_r . k_t of NR rows and 16 NV tokens. */
INLINE void score_pairs_of(const int NR, const int NV, const struct tile *tile, long r, long P,
                           float scale) {
    const bf16 *q = (const bf16 *)tile->q + r * P;
    const int32_t *keys = (const int32_t *)tile->k;
    __m512 acc[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++) acc[i][j] = _mm512_setzero_ps();
    for (long d = 0; d < P; d += 2) {
        __m512bh k[4];
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            k[j] = (__m512bh)_mm512_load_si512(keys + d / 2 * TILE + 16 * j);
#pragma GCC unroll 4
        for (int i = 0; i < NR; i++) {
            const __m512bh both = pair(q + i * P + d);
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], both, k[j]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < NV; j++)
            vstore_f32(tile->score + (r + i) * TILE + 16 * j, (vf)acc[i][j] * scale);
}

INLINE void score_pairs(const int NV, const struct tile *tile, long R, long P, float scale) {
    long r = 0;
    for (; r + 4 <= R; r += 4) score_pairs_of(4, NV, tile, r, P, scale);
    if (R - r == 3) score_pairs_of(3, NV, tile, r, P, scale);
    if (R - r == 2) score_pairs_of(2, NV, tile, r, P, scale);
    if (R - r == 1) score_pairs_of(1, NV, tile, r, P, scale);
}

/* Weights to bfloat16, each row in place. */
INLINE void narrow_weights(const struct tile *tile, long R, long n) {
    for (long r = 0; r < R; r++)
        for (long t = 0; t < n; t += VL)
            vstore_bf16((bf16 *)(tile->score + r * TILE) + t,
                        vload_f32(tile->score + r * TILE + t));
}

/* acc += weights . values of NR rows and 32 NC dims, pairs of tokens in order; the values of the
 * page `ahead` on their way. */
INLINE void accumulate_pairs_of(const int NR, const int NC, const struct tile *tile,
                                const struct page *page, const struct page *ahead, long r,
                                long d, long D, long P, long n) {
    float *at = tile->acc + r * P + d;
    __m512 acc[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int c = 0; c < 2 * NC; c++) acc[i][c] = _mm512_loadu_ps(at + i * P + 16 * c);
    for (long t = 0; t < n; t += 2) {
        __m512bh v[4];
#pragma GCC unroll 2
        for (int c = 0; c < NC; c++) {
            __m512i one = load_dims(page->values[t], d + 32 * c, D);
            __m512i two = load_dims(page->values[t + 1], d + 32 * c, D);
            fetch(ahead->values[t], d + 32 * c), fetch(ahead->values[t + 1], d + 32 * c);
            v[2 * c] = (__m512bh)_mm512_unpacklo_epi16(one, two);
            v[2 * c + 1] = (__m512bh)_mm512_unpackhi_epi16(one, two);
        }
#pragma GCC unroll 4
        for (int i = 0; i < NR; i++) {
            const __m512bh both = pair((const bf16 *)(tile->score + (r + i) * TILE) + t);
#pragma GCC unroll 4
            for (int c = 0; c < 2 * NC; c++) acc[i][c] = _mm512_dpbf16_ps(acc[i][c], both, v[c]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int c = 0; c < 2 * NC; c++) _mm512_storeu_ps(at + i * P + 16 * c, acc[i][c]);
}

INLINE void accumulate_pairs(const int NC, const struct tile *tile, const struct page *page,
                             const struct page *ahead, long R, long d, long D, long P, long n) {
    long r = 0;
    for (; r + 4 <= R; r += 4) accumulate_pairs_of(4, NC, tile, page, ahead, r, d, D, P, n);
    if (R - r == 3) accumulate_pairs_of(3, NC, tile, page, ahead, r, d, D, P, n);
    if (R - r == 2) accumulate_pairs_of(2, NC, tile, page, ahead, r, d, D, P, n);
    if (R - r == 1) accumulate_pairs_of(1, NC, tile, page, ahead, r, d, D, P, n);
}

/* acc / sum, its dims put back in order. */
INLINE void finish(const float *acc, float sum, long D, bf16 *out) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (long d = 0; d < D; d += 32) {
        const __m512 total = _mm512_set1_ps(sum);
        const __m512 low = _mm512_div_ps(_mm512_loadu_ps(acc + d), total);
        const __m512 high = _mm512_div_ps(_mm512_loadu_ps(acc + d + 16), total);
        bf16 row[32];
        vstore_bf16(row, (vf)_mm512_permutex2var_ps(low, first, high));
        vstore_bf16(row + 16, (vf)_mm512_permutex2var_ps(low, second, high));
        _mm512_mask_storeu_epi16(out + d, dims_from(d, D), _mm512_loadu_si512(row));
    }
}

/* As attend_rows of paged.h. While one tile is at work the next is on its way to the cache, a
 * row at a time: all at once they wait for each other. */
static void attend_pairs(const bf16 *q, bf16 *out, const int32_t *table, const struct rows *rows,
                         float *scratch) {
    const struct heads *heads = rows->heads;
    const long D = heads->head_dim, G = heads->num_kv_heads, H = heads->num_heads;
    const long P = padded(D), R = rows->num_tokens * rows->group;
    const struct tile tile = carve(scratch, rows);
    struct page pages[2];
    begin(&tile, rows, R, P);
    memset(tile.q, 0, sizeof(bf16) * R * P);
    for (long r = 0; r < R; r++)
        memcpy((bf16 *)tile.q + r * P, q + r / rows->group * (H + 2 * G) * D + r % rows->group * D,
               sizeof(bf16) * D);
    const long last = rows->position + rows->num_tokens, first = first_seen(rows, rows->position);
    long t0 = first / TILE * TILE, low = first, high = last - t0 < TILE ? last : t0 + TILE;
    point(rows, table, t0, low, high, &pages[0]);
    for (int turn = 0; t0 < last; turn ^= 1) {
        const long n = high - t0, wide = n > 32, next = t0 + TILE;
        const struct page *page = &pages[turn], *ahead = next < last ? &pages[turn ^ 1] : page;
        low = next, high = last - next < TILE ? last : next + TILE;
        if (next < last) point(rows, table, next, low, high, &pages[turn ^ 1]);
        turn_keys(page, ahead, D, P, wide ? 64 : 32, (int32_t *)tile.k);
        if (wide) score_pairs(4, &tile, R, P, heads->scale);
        else score_pairs(2, &tile, R, P, heads->scale);
        weigh(&tile, rows, R, P, t0, wide ? 64 : 32);
        narrow_weights(&tile, R, wide ? 64 : 32);
        long d = 0;
        for (; d + 64 <= P; d += 64) accumulate_pairs(2, &tile, page, ahead, R, d, D, P, n);
        if (d < P) accumulate_pairs(1, &tile, page, ahead, R, d, D, P, n);
        t0 = next;
    }
    for (long r = 0; r < R; r++)
        finish(tile.acc + r * P, tile.sum[r], D,
               out + r / rows->group * H * D + r % rows->group * D);
}
