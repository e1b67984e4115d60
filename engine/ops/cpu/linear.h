/* One linear over packed weights; included once per pair of types by linear.c.
 *
 * Defines NAME(linear) and NAME(experts_linear) from WEIGHT and X (float or bf16), STEP features
 * of a multiply, NAME(spread), NAME(load_pair), NAME(product) and STORE_PANEL. */

/* STEP features of MR rows, `stride` apart, and of NP panels. */
INLINE void NAME(step)(const int MR, const int NP, const X *x, long stride, const WEIGHT *w,
                       long panel_size, vf acc[MR_MAX][NP_MAX][2]) {
    vf b[NP_MAX][2];
#pragma GCC unroll 16
    for (int p = 0; p < NP; p++) NAME(load_pair)(w + p * panel_size, b[p]);
    if (NP == 1) /* with several panels at once the CPU keeps up by itself */
        for (int l = 0; l < (int)(PANEL * STEP * sizeof(WEIGHT)); l += 64)
            __builtin_prefetch((const char *)w + AHEAD_BYTES + l);
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++) {
        vf a = NAME(spread)(x + m * stride);
#pragma GCC unroll 16
        for (int p = 0; p < NP; p++) {
            acc[m][p][0] = NAME(product)(a, b[p][0], acc[m][p][0]);
            acc[m][p][1] = NAME(product)(a, b[p][1], acc[m][p][1]);
        }
    }
}

/* y[MR rows][NP panels] : each output is one sum over k = 0, STEP, ... in that order. */
INLINE void NAME(tile)(const int MR, const int NP, const X *x, long K, const WEIGHT *w, X *y,
                       long N, long n0, const float *bias) {
    vf acc[MR_MAX][NP_MAX][2];
    const long whole = K / STEP * STEP, panel_size = (K + STEP - 1) / STEP * STEP * PANEL;
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 16
        for (int p = 0; p < NP; p++) acc[m][p][0] = acc[m][p][1] = (vf){0};
    for (long k = 0; k < whole; k += STEP)
        NAME(step)(MR, NP, x + k, K, w + k * PANEL, panel_size, acc);
    if (whole < K) { /* the last of an odd number of features, and 0 */
        X tail[MR_MAX][STEP] = {0};
        for (int m = 0; m < MR; m++) tail[m][0] = x[m * K + whole];
        NAME(step)(MR, NP, tail[0], STEP, w + whole * PANEL, panel_size, acc);
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 16
        for (int p = 0; p < NP; p++)
            STORE_PANEL(y + m * N, n0 + p * PANEL, N, bias, acc[m][p]);
}

/* All rows of one group of NP adjacent panels. */
static void NAME(panels)(int NP, const X *x, long M, long K, const WEIGHT *w, X *y, long N,
                         long n0, const float *bias) {
    long left = M;
    while (left > 0) {
        long blocks = (left + MR_MAX - 1) / MR_MAX;
        int mr = (int)((left + blocks - 1) / blocks);
#define ROWS(R)                                                                          \
    case R:                                                                              \
        if (NP == 1) NAME(tile)(R, 1, x, K, w, y, N, n0, bias);                          \
        else NAME(tile)(R, R == 1 ? 4 : 2, x, K, w, y, N, n0, bias);                     \
        break;
        switch (mr) {
            ROWS(1) ROWS(2) ROWS(3)
#if MR_MAX == 11
            ROWS(4) ROWS(5)
#endif
#define WIDE(R) case R: NAME(tile)(R, 1, x, K, w, y, N, n0, bias); break;
#if MR_MAX == 11
            WIDE(6) WIDE(7) WIDE(8) WIDE(9) WIDE(10) WIDE(11)
#else
            WIDE(4) WIDE(5) WIDE(6)
#endif
        }
#undef ROWS
#undef WIDE
        x += mr * K, y += mr * N, left -= mr;
    }
}

/* y[M][N] = x[M][K] w^T + bias; w packed by linears.pack; bias may be null. */
void NAME(linear)(const X *x, const WEIGHT *w, const float *bias, X *y, long M, long N, long K) {
    const long num_panels = (N + PANEL - 1) / PANEL, padded = (K + STEP - 1) / STEP * STEP;
    const int group = M == 1 ? 4 : M <= (MR_MAX == 11 ? 5 : 3) ? 2 : 1;
    const long num_groups = num_panels / group, rest = num_panels % group;
    long rows = L2_BYTES / (long)sizeof(X) / K; /* rows of x that stay in the second-level cache */
    rows = rows < MR_MAX ? MR_MAX : rows / MR_MAX * MR_MAX;
    const long num_row_blocks = (M + rows - 1) / rows, items = num_groups + rest;
#pragma omp parallel for schedule(dynamic, 1)
    for (long item = 0; item < num_row_blocks * items; item++) {
        const long m0 = item / items * rows, g = item % items;
        const long panel = g < num_groups ? g * group : num_groups * group + (g - num_groups);
        NAME(panels)(g < num_groups ? group : 1, x + m0 * K, M - m0 < rows ? M - m0 : rows, K,
                     w + panel * PANEL * padded, y + m0 * N, N, panel * PANEL, bias);
    }
}

/* The same linear of each expert over its own rows: expert e has rows offsets[e] up to
 * offsets[e + 1] of x and y. */
void NAME(experts_linear)(const X *x, const struct linear *experts, X *y, const int64_t *offsets,
                          long E, long N, long K) {
    const long num_panels = (N + PANEL - 1) / PANEL, padded = (K + STEP - 1) / STEP * STEP;
#pragma omp parallel for schedule(dynamic, 1) collapse(2)
    for (long e = 0; e < E; e++)
        for (long panel = 0; panel < num_panels; panel++) {
            const long first = offsets[e], M = offsets[e + 1] - first;
            if (M)
                NAME(panels)(1, x + first * K, M, K,
                             (const WEIGHT *)experts[e].weights + panel * PANEL * padded,
                             y + first * N, N, panel * PANEL, experts[e].bias);
        }
}
