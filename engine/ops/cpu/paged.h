/* Paged attention; included once per (activation, KV) type pair by attention.c. */

/* Tokens [low, high) of one head, widened to float rows of P, the tile's first at t0. Rows before
 * them, and after them up to `rows_end`, are zero, so that whatever lies in unused slots, NaN
 * included, never meets a product. */
INLINE void NAME(gather)(const KV *head_pool, const int32_t *table, const struct heads *heads,
                         long t0, long low, long high, long rows_end, long P, float *out) {
    const long D = heads->head_dim, B = heads->block_tokens;
    long block = low / B, place = low % B;
    memset(out, 0, sizeof(float) * (low - t0) * P);
    for (long t = low; t < high; block++, place = 0) {
        const KV *from = head_pool + table[block] * heads->block_stride + place * D;
        for (; place < B && t < high; place++, t++, from += D) {
            float *to = out + (t - t0) * P;
            long d = 0;
            for (; d + VL <= D; d += VL) *(vf *)(to + d) = VLOAD(from + d);
            for (; d < P; d++) to[d] = d < D ? LOAD(from + d) : 0.0f;
        }
    }
    memset(out + (high - t0) * P, 0, sizeof(float) * (rows_end - (high - t0)) * P);
}

#ifndef ATTEND_ROWS
#define ATTEND_ROWS NAME(attend_rows)
/* Attention of `rows` = tokens x heads-per-KV-head query rows of one sequence and KV head. */
static void NAME(attend_rows)(const IO *q, IO *out, const int32_t *table, const struct rows *rows,
                              float *scratch) {
    const struct heads *heads = rows->heads;
    const long D = heads->head_dim, G = heads->num_kv_heads, B = heads->block_tokens;
    const long P = padded(D), R = rows->num_tokens * rows->group;
    const long q_stride = (heads->num_heads + 2 * G) * D, out_stride = heads->num_heads * D;
    const struct tile tile = carve(scratch, rows);
    begin(&tile, rows, R, P);
    memset(tile.q, 0, sizeof(float) * R * P);
    for (long r = 0; r < R; r++) {
        const IO *from = q + r / rows->group * q_stride + r % rows->group * D;
        for (long d = 0; d < D; d++) tile.q[r * P + d] = LOAD(from + d) * heads->scale;
    }
    const KV *keys = (const KV *)heads->layer_pool + rows->kv_head * B * D;
    const KV *values = keys + G * B * D;
    const long last = rows->position + rows->num_tokens, first = first_seen(rows, rows->position);
    for (long t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const long low = t0 < first ? first : t0, high = last - t0 < TILE ? last : t0 + TILE;
        const long rows_end = (high - t0 + VL - 1) / VL * VL;
        NAME(gather)(keys, table, heads, t0, low, high, rows_end, P, tile.k);
        NAME(gather)(values, table, heads, t0, low, high, rows_end, P, tile.v);
        score(&tile, R, P, rows_end);
        weigh(&tile, rows, R, P, t0, rows_end);
        accumulate(&tile, R, P, high - t0);
    }
    for (long r = 0; r < R; r++) {
        IO *to = out + r / rows->group * out_stride + r % rows->group * D;
        for (long d = 0; d < D; d++) STORE(to + d, tile.acc[r * P + d] / tile.sum[r]);
    }
}
#endif

/* out[T][H D] = attention of q (first H heads of qkv[T][(H + 2 G) D]) over the paged context.
 * starts[S + 1]: first token of each sequence; ends[S]: its context length after this step.
 * Whether there was memory for it; without, some of `out` is not written. */
int NAME(attend)(const IO *qkv, IO *out, const struct heads *heads, const int32_t *starts,
                  const int32_t *ends, const int32_t *tables, long width, long S) {
    const long D = heads->head_dim, G = heads->num_kv_heads, H = heads->num_heads, group = H / G;
    const long tokens = group >= MAX_ROWS ? 1 : MAX_ROWS / group;
    long *firsts = malloc(sizeof(long) * (S + 1));
    if (firsts == NULL) return 0;
    int has_memory = 1;
    firsts[0] = 0;
    for (long s = 0; s < S; s++)
        firsts[s + 1] = firsts[s] + (starts[s + 1] - starts[s] + tokens - 1) / tokens;
    const long num_items = firsts[S] * G;
#pragma omp parallel reduction(&& : has_memory)
    {
        float *scratch = aligned_alloc(64, scratch_bytes(D, group));
        has_memory = scratch != NULL;
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < num_items; item++) {
            if (scratch == NULL) continue;
            const long g = item % G, index = item / G;
            long low = 0, high = S; /* the sequence whose tiles hold `index` */
            while (high - low > 1) {
                const long middle = (low + high) / 2;
                if (firsts[middle] <= index) low = middle; else high = middle;
            }
            const long length = starts[low + 1] - starts[low];
            const long from = (index - firsts[low]) * tokens, t = starts[low] + from;
            const struct rows rows = {
                .heads = heads, .num_tokens = length - from < tokens ? length - from : tokens,
                .group = group, .kv_head = g, .position = ends[low] - length + from,
            };
            ATTEND_ROWS(qkv + t * (H + 2 * G) * D + g * group * D,
                        out + t * H * D + g * group * D, tables + low * width, &rows, scratch);
        }
        free(scratch);
    }
    free(firsts);
    return has_memory;
}
#undef ATTEND_ROWS
