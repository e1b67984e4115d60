/* Rotation, KV writing and paged attention; included once per (activation, KV) type pair. */

INLINE void NAME(rotate)(IO *x, const float *cos_, const float *sin_, const float *weight,
                         float eps, long D, float *out) {
    for (long d = 0; d < D; d++) out[d] = LOAD_IO(x + d);
    if (weight) {
        const float scale = head_inverse_rms(out, D, eps);
        for (long d = 0; d < D; d++) out[d] *= scale * weight[d];
    }
    for (long d = 0; d < D / 2; d++) {
        const float a = out[d], b = out[d + D / 2];
        out[d] = a * cos_[d] - b * sin_[d];
        out[d + D / 2] = b * cos_[d] + a * sin_[d];
    }
}

/* Rotates q in place in qkv[T][(H + 2 G) D], writes rotated k and v to their slots. */
void NAME(rotate_store)(IO *qkv, const float *rotations, const float *q_weight,
                        const float *k_weight, const int64_t *slots, KV *layer_pool,
                        const struct pool *pool, long T, long H, float eps) {
    const long D = pool->head_dim, G = pool->num_kv_heads, B = pool->block_tokens;
#pragma omp parallel for schedule(static) if (T > 4)
    for (long t = 0; t < T; t++) {
        float head[MAX_HEAD_DIM];
        IO *row = qkv + t * (H + 2 * G) * D;
        const float *cos_ = rotations + t * D, *sin_ = cos_ + D / 2;
        for (long h = 0; h < H; h++) {
            NAME(rotate)(row + h * D, cos_, sin_, q_weight, eps, D, head);
            for (long d = 0; d < D; d++) STORE_IO(row + h * D + d, head[d]);
        }
        KV *slot = layer_pool + slots[t] / B * pool->block_stride + slots[t] % B * D;
        for (long g = 0; g < G; g++) {
            NAME(rotate)(row + (H + g) * D, cos_, sin_, k_weight, eps, D, head);
            const IO *value = row + (H + G + g) * D;
            KV *k = slot + g * B * D, *v = k + G * B * D;
            for (long d = 0; d < D; d++) STORE_KV(k + d, head[d]);
            for (long d = 0; d < D; d++) STORE_KV(v + d, LOAD_IO(value + d));
        }
    }
}

/* Tokens [t0, t0 + n) of one head, widened to float rows of P; rows up to `padded` are zero, so
 * that whatever lies in unused slots, NaN included, never meets a product. */
INLINE void NAME(gather)(const KV *head_pool, const int32_t *table, const struct pool *pool,
                         long t0, long n, long padded, long P, float *out) {
    const long D = pool->head_dim, B = pool->block_tokens;
    long block = t0 / B, place = t0 % B;
    for (long t = 0; t < n; block++, place = 0) {
        const KV *from = head_pool + table[block] * pool->block_stride + place * D;
        for (; place < B && t < n; place++, t++, from += D) {
            float *to = out + t * P;
            long d = 0;
            for (; d + VL <= D; d += VL) *(vf *)(to + d) = VLOAD_KV(from + d);
            for (; d < P; d++) to[d] = d < D ? LOAD_KV(from + d) : 0.0f;
        }
    }
    memset(out + n * P, 0, sizeof(float) * (padded - n) * P);
}

/* Attention of `rows` = tokens x heads-per-KV-head query rows of one sequence and KV head. */
static void NAME(attend_rows)(const IO *q, IO *out, const KV *layer_pool, const int32_t *table,
                              const struct pool *pool, const struct rows *rows, float *scratch) {
    const long D = pool->head_dim, G = pool->num_kv_heads, B = pool->block_tokens;
    const long P = (D + VL - 1) / VL * VL, R = rows->num_tokens * rows->group;
    const struct tile tile = carve(scratch, P);
    memset(tile.q, 0, sizeof(float) * R * P);
    memset(tile.acc, 0, sizeof(float) * R * P);
    for (long r = 0; r < R; r++) {
        const IO *from = q + r / rows->group * rows->q_stride + r % rows->group * D;
        for (long d = 0; d < D; d++) tile.q[r * P + d] = LOAD_IO(from + d) * rows->scale;
        tile.max[r] = -INFINITY, tile.sum[r] = 0.0f;
    }
    const KV *keys = layer_pool + rows->kv_head * B * D, *values = keys + G * B * D;
    const long last = rows->position + rows->num_tokens;
    long first = rows->window && rows->position >= rows->window
                     ? rows->position - rows->window + 1 : 0;
    for (long t0 = first / TILE * TILE; t0 < last; t0 += TILE) {
        const long n = last - t0 < TILE ? last - t0 : TILE;
        const long padded = (n + VL - 1) / VL * VL;
        NAME(gather)(keys, table, pool, t0, n, padded, P, tile.k);
        NAME(gather)(values, table, pool, t0, n, padded, P, tile.v);
        score(&tile, R, P, padded);
        weigh(&tile, rows, R, P, t0, padded);
        accumulate(&tile, R, P, n);
    }
    for (long r = 0; r < R; r++) {
        IO *to = out + r / rows->group * rows->out_stride + r % rows->group * D;
        for (long d = 0; d < D; d++) STORE_IO(to + d, tile.acc[r * P + d] / tile.sum[r]);
    }
}

/* out[T][H D] = attention of q (first H heads of qkv[T][(H + 2 G) D]) over the paged context.
 * starts[S + 1]: first token of each sequence; ends[S]: its context length after this step. */
void NAME(attend)(const IO *qkv, IO *out, const KV *layer_pool, const struct pool *pool,
                  const int32_t *starts, const int32_t *ends, const int32_t *tables, long width,
                  long S, long H, long window, float scale) {
    const long D = pool->head_dim, G = pool->num_kv_heads, group = H / G;
    const long tokens = group >= MAX_ROWS ? 1 : MAX_ROWS / group;
    long *firsts = malloc(sizeof(long) * (S + 1));
    firsts[0] = 0;
    for (long s = 0; s < S; s++)
        firsts[s + 1] = firsts[s] + (starts[s + 1] - starts[s] + tokens - 1) / tokens;
    const long num_items = firsts[S] * G;
#pragma omp parallel
    {
        float *scratch = aligned_alloc(64, scratch_bytes(D, group));
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < num_items; item++) {
            const long g = item % G, index = item / G;
            long low = 0, high = S; /* the sequence whose tiles hold `index` */
            while (high - low > 1) {
                const long middle = (low + high) / 2;
                if (firsts[middle] <= index) low = middle; else high = middle;
            }
            const long length = starts[low + 1] - starts[low];
            const long from = (index - firsts[low]) * tokens;
            const long t = starts[low] + from;
            const struct rows rows = {
                .num_tokens = length - from < tokens ? length - from : tokens,
                .group = group, .kv_head = g, .position = ends[low] - length + from,
                .window = window, .q_stride = (H + 2 * G) * D, .out_stride = H * D, .scale = scale,
            };
            NAME(attend_rows)(qkv + t * rows.q_stride + g * group * D,
                              out + t * rows.out_stride + g * group * D, layer_pool,
                              tables + low * width, pool, &rows, scratch);
        }
        free(scratch);
    }
    free(firsts);
}
