/* Paged attention with online softmax over tiles of TILE tokens at fixed positions.
 *
 * A row's tiles, and the order of every sum in them, depend only on its own position: decode,
 * prefill and any chunking of it give the same bits, whatever else is in the batch. */
#pragma GCC optimize("O3") /* the build is -O2: at -O3 linear.c takes six seconds to compile */
#include "heads.h"

#define TILE 64
#define MAX_ROWS 32 /* query rows (tokens x heads of one KV head) that share a tile */
#if defined(__AVX512BF16__)
#define PAD 32 /* a head's dims are padded to this many */
#else
#define PAD VL
#endif

struct rows { /* of one sequence and KV head; `position` of the first token */
    const struct heads *heads;
    long num_tokens, group, kv_head, position;
};
struct tile {
    float *q, *acc, *k, *v, *score, *max, *sum;
};

INLINE long rows_of(long group) { return group > MAX_ROWS ? group : MAX_ROWS; }

INLINE long padded(long D) { return (D + PAD - 1) / PAD * PAD; }

INLINE long scratch_bytes(long D, long group) {
    const long P = padded(D), R = rows_of(group);
    return (long)sizeof(float) * (2 * R * P + 2 * TILE * P + R * TILE + 2 * R + 64) / 64 * 64;
}

/* Rows last: their number is the only size not fixed by P. */
INLINE struct tile carve(float *at, const struct rows *rows) {
    const long P = padded(rows->heads->head_dim), R = rows_of(rows->group);
    struct tile tile;
    tile.k = at, at += TILE * P;
    tile.v = at, at += TILE * P;
    tile.q = at, at += R * P;
    tile.acc = at, at += R * P;
    tile.score = at, at += R * TILE;
    tile.max = at, at += R;
    tile.sum = at;
    return tile;
}

/* score[r][t] = q_r . k_t for t < n, a multiple of VL */
INLINE void score_rows(const int NR, const struct tile *tile, long r, long P, long n) {
    for (long t = 0; t < n; t += VL) {
        vf acc[2][VL];
#pragma GCC unroll 2
        for (long half = 0; half < VL; half += VL / 2) {
#pragma GCC unroll 16
            for (int i = 0; i < NR; i++)
#pragma GCC unroll 16
                for (int j = 0; j < VL / 2; j++) acc[i][half + j] = (vf){0};
            for (long d = 0; d < P; d += VL) {
#pragma GCC unroll 16
                for (int j = 0; j < VL / 2; j++) {
                    vf k = vload_f32(tile->k + (t + half + j) * P + d);
#pragma GCC unroll 16
                    for (int i = 0; i < NR; i++)
                        acc[i][half + j] =
                            vfma(vload_f32(tile->q + (r + i) * P + d), k, acc[i][half + j]);
                }
            }
        }
#pragma GCC unroll 2
        for (int i = 0; i < NR; i++) *(vf *)(tile->score + (r + i) * TILE + t) = vsums(acc[i]);
    }
}

INLINE void score(const struct tile *tile, long R, long P, long n) {
    long r = 0;
    for (; r + 2 <= R; r += 2) score_rows(2, tile, r, P, n);
    if (r < R) score_rows(1, tile, r, P, n);
}

/* A row before its first tile: a sink is a score of weight 1 without a value. */
INLINE void begin(const struct tile *tile, const struct rows *rows, long R, long P) {
    const float *sinks = rows->heads->sinks;
    memset(tile->acc, 0, sizeof(float) * R * P);
    for (long r = 0; r < R; r++) {
        tile->max[r] = sinks ? sinks[rows->kv_head * rows->group + r % rows->group] : -INFINITY;
        tile->sum[r] = tile->max[r] == -INFINITY ? 0.0f : 1.0f;
    }
}

INLINE long first_seen(const struct rows *rows, long position) {
    const long window = rows->heads->window;
    return window && position >= window ? position - window + 1 : 0;
}

INLINE void cap(float *s, long n, float softcap) {
    for (long t = 0; t < n; t += VL)
        vstore_f32(s + t, softcap * vtanh(vload_f32(s + t) / softcap));
}

/* Scores become weights relative to the row's maximum so far; acc and sum follow it. Where a row
 * has seen nothing yet its weights are 0, unless a score is NaN: then so is the row. */
INLINE void weigh(const struct tile *tile, const struct rows *rows, long R, long P, long t0,
                  long n) {
    for (long r = 0; r < R; r++) {
        float *s = tile->score + r * TILE;
        const long position = rows->position + r / rows->group;
        const long first = first_seen(rows, position);
        if (rows->heads->softcap != 0.0f) cap(s, n, rows->heads->softcap);
        if (t0 + n > position + 1 || t0 < first)
            for (long t = 0; t < n; t++)
                if (t0 + t > position || t0 + t < first) s[t] = -INFINITY;
        vf tops = vload_f32(s);
        for (long t = VL; t < n; t += VL) tops = vmax(tops, vload_f32(s + t));
        const float best = vtop(tops), top = best > tile->max[r] ? best : tile->max[r];
        if (top == -INFINITY) {
            for (long t = 0; t < n; t++)
                if (s[t] != s[t]) tile->sum[r] = NAN;
            memset(s, 0, sizeof(float) * n);
            continue;
        }
        vf sum = {0};
        for (long t = 0; t < n; t += VL) {
            vf weight = vexp(vload_f32(s + t) - top);
            *(vf *)(s + t) = weight;
            sum += weight;
        }
        if (top != tile->max[r]) { /* on the first tile acc and sum are still zero */
            const float rescale = tile->max[r] == -INFINITY ? 1.0f : expf(tile->max[r] - top);
            for (long d = 0; d < P; d++) tile->acc[r * P + d] *= rescale;
            tile->sum[r] *= rescale;
            tile->max[r] = top;
        }
        tile->sum[r] += vsum(sum);
    }
}

/* acc[r] += sum over t of weight[r][t] v_t, tokens in order. */
INLINE void accumulate_rows(const int NR, const int ND, const struct tile *tile, long r, long P,
                            long d, long n) {
    vf acc[2][4];
#pragma GCC unroll 8
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 8
        for (int j = 0; j < ND; j++) acc[i][j] = vload_f32(tile->acc + (r + i) * P + d + j * VL);
    for (long t = 0; t < n; t++) {
#pragma GCC unroll 8
        for (int i = 0; i < NR; i++) {
            vf weight = vf_all(tile->score[(r + i) * TILE + t]);
#pragma GCC unroll 8
            for (int j = 0; j < ND; j++)
                acc[i][j] = vfma(weight, vload_f32(tile->v + t * P + d + j * VL), acc[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 8
        for (int j = 0; j < ND; j++) *(vf *)(tile->acc + (r + i) * P + d + j * VL) = acc[i][j];
}

INLINE void accumulate(const struct tile *tile, long R, long P, long n) {
    for (long r = 0; r < R; r += 2) {
        const int two = r + 2 <= R;
        long d = 0;
        for (; d + 4 * VL <= P; d += 4 * VL)
            if (two) accumulate_rows(2, 4, tile, r, P, d, n);
            else accumulate_rows(1, 4, tile, r, P, d, n);
        for (; d < P; d += VL)
            if (two) accumulate_rows(2, 1, tile, r, P, d, n);
            else accumulate_rows(1, 1, tile, r, P, d, n);
    }
}

#define IO float
#define KV float
#define NAME(x) x##_f32_f32
#include "paged.h"
#undef KV
#undef NAME
#define KV bf16
#define NAME(x) x##_f32_bf16
#include "paged.h"
#undef IO
#undef NAME
#define IO bf16
#define NAME(x) x##_bf16_bf16
#if defined(__AVX512BF16__)
#include "pairs.h"
#define ATTEND_ROWS attend_pairs
#endif
#include "paged.h"
