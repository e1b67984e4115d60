/* The steps between the linears; included once per activation type by elementwise.c. */

/* x += delta (when given); out = x / rms(x) * weight. x stays float: it is the residual. */
void NAME(norm)(float *x, const IO *delta, const float *weight, float eps, IO *out, long T,
                long K) {
#pragma omp parallel for schedule(static) if (T * K > GRAIN)
    for (long t = 0; t < T; t++) {
        float *row = x + t * K;
        IO *to = out + t * K;
        if (delta)
            for (long k = 0; k < K; k++) row[k] += LOAD(delta + t * K + k);
        const float scale = inverse_rms(row, K, eps);
        for (long k = 0; k < K; k++) STORE(to + k, row[k] * scale * weight[k]);
    }
}

/* out[T][F] = silu(gate) * up of gate_up[T][2 F]. */
void NAME(silu_mul)(const IO *gate_up, IO *out, long T, long F) {
#pragma omp parallel for schedule(static) if (T * F > GRAIN)
    for (long t = 0; t < T; t++) {
        const IO *gate = gate_up + 2 * t * F, *up = gate + F;
        IO *to = out + t * F;
        long f = 0;
        for (; f + VL <= F; f += VL) {
            float product[VL];
            vf g = VLOAD(gate + f), u = VLOAD(up + f);
            vi negative = g < 0.0f;
            vf e = vexp((vf)((vi)g | INT32_MIN)); /* exp(-|g|): never overflows */
            vf numerator = (vf)((negative & (vi)e) | (~negative & (vi)vf_all(1.0f)));
            vf y = g * (numerator / (1.0f + e)) * u;
            memcpy(product, &y, sizeof product);
            for (int i = 0; i < VL; i++) STORE(to + f + i, product[i]);
        }
        for (; f < F; f++) {
            const float g = LOAD(gate + f);
            STORE(to + f, g / (1.0f + expf(-g)) * LOAD(up + f));
        }
    }
}
