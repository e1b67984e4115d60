/* Norm, rotation and KV writing; included once per (activation, KV) type pair by rotate.c. */

INLINE float NAME(sum_of_squares)(const IO *x, long D) {
    vf sum = {0};
    long d = 0;
    for (; d + VL <= D; d += VL) sum = vfma(VLOAD(x + d), VLOAD(x + d), sum);
    float total = vsum(sum);
    for (; d < D; d++) total += LOAD(x + d) * LOAD(x + d);
    return total;
}

/* 1 / rms of all heads as one row; added up head by head. */
INLINE float NAME(row_scale)(const IO *x, long num_heads, long D, float eps) {
    float total = 0.0f;
    for (long h = 0; h < num_heads; h++) total += NAME(sum_of_squares)(x + h * D, D);
    return 1.0f / sqrtf(total / (float)(num_heads * D) + eps);
}

/* out[D] = the head in float, times scale * weight when there is one, turned. */
INLINE void NAME(turned)(const IO *x, float scale, const float *weight, const struct turn *turn,
                         long D, float *out) {
    long d = 0;
    for (; d + VL <= D; d += VL) {
        vf y = VLOAD(x + d);
        if (weight) y = y * scale * vload_f32(weight + d);
        vstore_f32(out + d, y);
    }
    for (; d < D; d++) out[d] = weight ? LOAD(x + d) * scale * weight[d] : LOAD(x + d);
    turned(turn, out);
}

INLINE void NAME(store_io)(IO *to, const float *from, long D) {
    long d = 0;
    for (; d + VL <= D; d += VL) VSTORE(to + d, vload_f32(from + d));
    for (; d < D; d++) STORE(to + d, from[d]);
}

INLINE void NAME(store_kv)(KV *to, const float *from, long D) {
    long d = 0;
    for (; d + VL <= D; d += VL) VSTORE(to + d, vload_f32(from + d));
    for (; d < D; d++) STORE(to + d, from[d]);
}

/* Turns q in place in row = qkv[(H + 2 G) D]; turned k, and v, to the slot. */
INLINE void NAME(rotate_row)(IO *row, const struct heads *heads, const struct turn *turn,
                             KV *slot) {
    const long D = heads->head_dim, H = heads->num_heads, G = heads->num_kv_heads;
    const struct turn none = {0};
    float head[MAX_HEAD_DIM], scale = 1.0f;
    if (heads->q_norm && heads->whole_q) scale = NAME(row_scale)(row, H, D, heads->norm_eps);
    for (long h = 0; h < H && (heads->q_norm || turn->num_turned); h++) {
        const float *weight = heads->q_norm;
        if (weight && heads->whole_q) weight += h * D;
        else if (weight) scale = NAME(row_scale)(row + h * D, 1, D, heads->norm_eps);
        NAME(turned)(row + h * D, scale, weight, turn, D, head);
        NAME(store_io)(row + h * D, head, D);
    }
    const IO *keys = row + H * D, *values = keys + G * D;
    if (heads->k_norm && heads->whole_k) scale = NAME(row_scale)(keys, G, D, heads->norm_eps);
    for (long g = 0; g < G; g++) {
        const float *weight = heads->k_norm;
        KV *k = slot + g * heads->block_tokens * D, *v = k + G * heads->block_tokens * D;
        if (weight && heads->whole_k) weight += g * D;
        else if (weight) scale = NAME(row_scale)(keys + g * D, 1, D, heads->norm_eps);
        NAME(turned)(keys + g * D, scale, weight, turn, D, head);
        NAME(store_kv)(k, head, D);
        NAME(turned)(values + g * D, 1.0f, NULL, &none, D, head);
        NAME(store_kv)(v, head, D);
    }
}

/* Every row of qkv[T]; rotations[T][2][num_turned / 2]. */
void NAME(rotate_store)(IO *qkv, const float *rotations, long num_turned, const int64_t *slots,
                        const struct heads *heads, long T) {
    const long D = heads->head_dim, B = heads->block_tokens;
    const long width = (heads->num_heads + 2 * heads->num_kv_heads) * D;
#pragma omp parallel for schedule(static) if (T > 4)
    for (long t = 0; t < T; t++) {
        const float *cos_ = rotations + t * num_turned;
        const struct turn turn = {cos_, cos_ + num_turned / 2, num_turned};
        KV *slot = (KV *)heads->layer_pool + slots[t] / B * heads->block_stride;
        NAME(rotate_row)(qkv + t * width, heads, &turn, slot + slots[t] % B * D);
    }
}
