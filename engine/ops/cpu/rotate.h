/* Norm, rotation and KV writing; included once per (activation, KV) type pair by rotate.c. */

#include "moments.h"

struct NAME(norm) { /* of heads: out = (x - mean) * scale * weight, or x without a weight */
    const float *weight;
    float mean, scale;
};

/* Of all heads as one row, where it is `whole`; added up head by head. */
INLINE struct NAME(norm) NAME(row_norm)(const struct heads *heads, const float *weight, long whole,
                                        const IO *x, long num_heads) {
    const long D = heads->head_dim;
    float total = 0.0f;
    for (long h = 0; whole && h < num_heads; h++) total += NAME(squares)(x + h * D, 0.0f, D);
    const float scale = 1.0f / sqrtf(total / (float)(num_heads * D) + heads->norm_eps);
    return (struct NAME(norm)){weight, 0.0f, scale};
}

/* Of head h at x, as that of the row says. */
INLINE struct NAME(norm) NAME(head_norm)(const struct heads *heads, struct NAME(norm) norm,
                                         long whole, const IO *x, long h) {
    const long D = heads->head_dim;
    if (!norm.weight) return norm;
    if (whole || heads->centred) norm.weight += h * D;
    if (whole) return norm;
    if (heads->centred) norm.mean = NAME(mean)(x, D);
    norm.scale = 1.0f / sqrtf(NAME(squares)(x, norm.mean, D) / (float)D + heads->norm_eps);
    return norm;
}

/* out[D] = the head in float, normed, turned. */
INLINE void NAME(turned)(const IO *x, struct NAME(norm) norm, const struct turn *turn, long D,
                         float *out) {
    const float *weight = norm.weight;
    long d = 0;
    for (; d + VL <= D; d += VL) {
        vf y = VLOAD(x + d);
        if (weight) y = (y - norm.mean) * norm.scale * vload_f32(weight + d);
        vstore_f32(out + d, y);
    }
    for (; d < D; d++)
        out[d] = weight ? (LOAD(x + d) - norm.mean) * norm.scale * weight[d] : LOAD(x + d);
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
    const struct turn no_turn = {0};
    const struct NAME(norm) no_norm = {0};
    float head[MAX_HEAD_DIM];
    struct NAME(norm) all = NAME(row_norm)(heads, heads->q_norm, heads->whole_q, row, H), one;
    for (long h = 0; h < H && (heads->q_norm || turn->num_turned); h++) {
        one = NAME(head_norm)(heads, all, heads->whole_q, row + h * D, h);
        NAME(turned)(row + h * D, one, turn, D, head);
        NAME(store_io)(row + h * D, head, D);
    }
    const IO *keys = row + H * D, *values = keys + G * D;
    all = NAME(row_norm)(heads, heads->k_norm, heads->whole_k, keys, G);
    for (long g = 0; g < G; g++) {
        KV *k = slot + g * heads->block_tokens * D, *v = k + G * heads->block_tokens * D;
        one = NAME(head_norm)(heads, all, heads->whole_k, keys + g * D, g);
        NAME(turned)(keys + g * D, one, turn, D, head);
        NAME(store_kv)(k, head, D);
        NAME(turned)(values + g * D, no_norm, &no_turn, D, head);
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
