/* The steps between the linears; included once per activation type by elementwise.c. */

#include "moments.h"

/* (x - mean) / rms(x - mean) * weight + bias, the mean being 0 unless `centred`. */
INLINE struct norm NAME(row_norm)(const IO *x, const float *weight, const float *bias, float eps,
                                  long centred, long K) {
    const float mean = centred ? NAME(mean)(x, K) : 0.0f;
    const float scale = 1.0f / sqrtf(NAME(squares)(x, mean, K) / (float)K + eps);
    return (struct norm){weight, bias, mean, scale};
}

/* x += delta_scale * delta (when given); out = norm(x), or x without a weight. x stays float: it
 * is the residual. */
void NAME(norm)(float *x, const IO *delta, float delta_scale, const float *weight,
                const float *bias, float eps, long centred, IO *out, long T, long K) {
#pragma omp parallel for schedule(static) if (T * K > GRAIN)
    for (long t = 0; t < T; t++) {
        float *row = x + t * K;
        IO *to = out + t * K;
        long k = 0;
        if (delta) {
            const IO *from = delta + t * K;
            for (; k + VL <= K; k += VL)
                vstore_f32(row + k, vload_f32(row + k) + VLOAD(from + k) * delta_scale);
            for (; k < K; k++) row[k] += LOAD(from + k) * delta_scale;
        }
        struct norm norm = {0};
        if (weight) norm = row_norm_f32(row, weight, bias, eps, centred, K);
        for (k = 0; k + VL <= K; k += VL) {
            vf y = vload_f32(row + k);
            VSTORE(to + k, weight ? normed(&norm, y, k) : y);
        }
        for (; k < K; k++) STORE(to + k, weight ? normed_one(&norm, row[k], k) : row[k]);
    }
}

/* out = norm(y) */
void NAME(post_norm)(const IO *y, const float *weight, const float *bias, float eps, long centred,
                     IO *out, long T, long K) {
#pragma omp parallel for schedule(static) if (T * K > GRAIN)
    for (long t = 0; t < T; t++) {
        const IO *row = y + t * K;
        IO *to = out + t * K;
        const struct norm norm = NAME(row_norm)(row, weight, bias, eps, centred, K);
        long k = 0;
        for (; k + VL <= K; k += VL) VSTORE(to + k, normed(&norm, VLOAD(row + k), k));
        for (; k < K; k++) STORE(to + k, normed_one(&norm, LOAD(row + k), k));
    }
}

INLINE void NAME(gate_row)(const enum activation activation, const IO *gate, const IO *up, IO *out,
                           long F) {
    const vf one = vf_all(1.0f);
    long f = 0;
    for (; f + VL <= F; f += VL)
        VSTORE(out + f, activated(activation, VLOAD(gate + f), up ? VLOAD(up + f) : one));
    if (f == F) return;
    IO g[VL] = {0}, u[VL] = {0};
    memcpy(g, gate + f, sizeof(IO) * (F - f));
    if (up) memcpy(u, up + f, sizeof(IO) * (F - f));
    VSTORE(g, activated(activation, VLOAD(g), up ? VLOAD(u) : one));
    memcpy(out + f, g, sizeof(IO) * (F - f));
}

/* out[T][F] = activation(gate, up) of gate_up[T][2 F]; `alone`: activation(x, 1) of x[T][F]. */
void NAME(gated)(const IO *gate_up, IO *out, long T, long F, long activation, long alone) {
#pragma omp parallel for schedule(static) if (T * F > GRAIN)
    for (long t = 0; t < T; t++) {
        const IO *row = gate_up + (alone ? 1 : 2) * t * F, *up = alone ? NULL : row + F;
        if (activation == SILU) NAME(gate_row)(SILU, row, up, out + t * F, F);
        else if (activation == GELU_TANH) NAME(gate_row)(GELU_TANH, row, up, out + t * F, F);
        else NAME(gate_row)(SWIGLU_OAI, row, up, out + t * F, F);
    }
}

/* out[t] = sum over j of weights[t][j] * y[places[t][j]], j in order. */
void NAME(combine)(const IO *y, const int64_t *places, const float *weights, IO *out, long T,
                   long J, long K) {
#pragma omp parallel for schedule(static) if (T * J * K > GRAIN)
    for (long t = 0; t < T; t++) {
        IO *to = out + t * K;
        long k = 0;
        for (; k + VL <= K; k += VL) {
            vf sum = {0};
            for (long j = t * J; j < (t + 1) * J; j++)
                sum += VLOAD(y + places[j] * K + k) * weights[j];
            VSTORE(to + k, sum);
        }
        for (; k < K; k++) {
            float sum = 0.0f;
            for (long j = t * J; j < (t + 1) * J; j++)
                sum += LOAD(y + places[j] * K + k) * weights[j];
            STORE(to + k, sum);
        }
    }
}
