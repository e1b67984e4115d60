/* The steps between the linears; included once per activation type by elementwise.c. */

INLINE float NAME(inverse_rms)(const IO *x, long K, float eps) {
    vf sum = {0};
    long k = 0;
    for (; k + VL <= K; k += VL) {
        vf v = VLOAD(x + k);
        sum = vfma(v, v, sum);
    }
    float total = vsum(sum);
    for (; k < K; k++) total += LOAD(x + k) * LOAD(x + k);
    return 1.0f / sqrtf(total / (float)K + eps);
}

/* x += delta_scale * delta (when given); out = x / rms(x) * weight, or x without a weight. x
 * stays float: it is the residual. */
void NAME(norm)(float *x, const IO *delta, float delta_scale, const float *weight, float eps,
                IO *out, long T, long K) {
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
        const float scale = weight ? inverse_rms_f32(row, K, eps) : 1.0f;
        for (k = 0; k + VL <= K; k += VL) {
            vf y = vload_f32(row + k);
            if (weight) y = y * scale * vload_f32(weight + k);
            VSTORE(to + k, y);
        }
        for (; k < K; k++) STORE(to + k, weight ? row[k] * scale * weight[k] : row[k]);
    }
}

/* out = y / rms(y) * weight */
void NAME(post_norm)(const IO *y, const float *weight, float eps, IO *out, long T, long K) {
#pragma omp parallel for schedule(static) if (T * K > GRAIN)
    for (long t = 0; t < T; t++) {
        const IO *row = y + t * K;
        IO *to = out + t * K;
        const float scale = NAME(inverse_rms)(row, K, eps);
        long k = 0;
        for (; k + VL <= K; k += VL)
            VSTORE(to + k, VLOAD(row + k) * scale * vload_f32(weight + k));
        for (; k < K; k++) STORE(to + k, LOAD(row + k) * scale * weight[k]);
    }
}

INLINE void NAME(gate_row)(const enum activation activation, const IO *gate, IO *out, long F) {
    const IO *up = gate + F;
    long f = 0;
    for (; f + VL <= F; f += VL)
        VSTORE(out + f, activated(activation, VLOAD(gate + f), VLOAD(up + f)));
    if (f == F) return;
    IO g[VL] = {0}, u[VL] = {0};
    memcpy(g, gate + f, sizeof(IO) * (F - f)), memcpy(u, up + f, sizeof(IO) * (F - f));
    VSTORE(g, activated(activation, VLOAD(g), VLOAD(u)));
    memcpy(out + f, g, sizeof(IO) * (F - f));
}

/* out[T][F] = activation(gate, up) of gate_up[T][2 F]. */
void NAME(gated)(const IO *gate_up, IO *out, long T, long F, long activation) {
#pragma omp parallel for schedule(static) if (T * F > GRAIN)
    for (long t = 0; t < T; t++) {
        const IO *row = gate_up + 2 * t * F;
        if (activation == SILU) NAME(gate_row)(SILU, row, out + t * F, F);
        else if (activation == GELU_TANH) NAME(gate_row)(GELU_TANH, row, out + t * F, F);
        else NAME(gate_row)(SWIGLU_OAI, row, out + t * F, F);
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
