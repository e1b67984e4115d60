/* Sums over a row, in a fixed order; included once per type of the row. */

INLINE float NAME(mean)(const IO *x, long K) {
    vf sum = {0};
    long k = 0;
    for (; k + VL <= K; k += VL) sum += VLOAD(x + k);
    float total = vsum(sum);
    for (; k < K; k++) total += LOAD(x + k);
    return total / (float)K;
}

/* Sum of (x - mean)^2. */
INLINE float NAME(squares)(const IO *x, float mean, long K) {
    vf sum = {0};
    long k = 0;
    for (; k + VL <= K; k += VL) {
        vf v = VLOAD(x + k) - mean;
        sum = vfma(v, v, sum);
    }
    float total = vsum(sum);
    for (; k < K; k++) total += (LOAD(x + k) - mean) * (LOAD(x + k) - mean);
    return total;
}
