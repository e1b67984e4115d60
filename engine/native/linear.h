/* One linear over packed weights; included once per weight type by linear.c.
 *
 * Defines NAME(linear) from WEIGHT (float or bf16) and NAME(load_pair). */

/* y[MR rows][NP panels] : each output is one sum over k = 0, 1, ... in that order. */
INLINE void NAME(tile)(const int MR, const int NP, const float *x, long K, const WEIGHT *w,
                       float *y, long N, long n0, const float *bias) {
    vf acc[MR_MAX][NP_MAX][2];
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 16
        for (int p = 0; p < NP; p++) acc[m][p][0] = acc[m][p][1] = (vf){0};
    for (long k = 0; k < K; k++) {
        vf b[NP_MAX][2];
#pragma GCC unroll 16
        for (int p = 0; p < NP; p++) NAME(load_pair)(w + (p * K + k) * PANEL, b[p]);
#pragma GCC unroll 16
        for (int m = 0; m < MR; m++) {
            vf a = vf_all(x[m * K + k]);
#pragma GCC unroll 16
            for (int p = 0; p < NP; p++) {
                acc[m][p][0] = vfma(a, b[p][0], acc[m][p][0]);
                acc[m][p][1] = vfma(a, b[p][1], acc[m][p][1]);
            }
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 16
        for (int p = 0; p < NP; p++)
            store_panel(y + m * N, n0 + p * PANEL, N, bias, acc[m][p]);
}

/* All rows of one group of NP adjacent panels. */
static void NAME(panels)(int NP, const float *x, long M, long K, const WEIGHT *w, float *y,
                         long N, long n0, const float *bias) {
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
#define WIDE(R) case R: NAME(tile)(R, 1, x, K, w, y, N, n0, bias); break;
            WIDE(4) WIDE(5) WIDE(6)
#if MR_MAX == 12
            WIDE(7) WIDE(8) WIDE(9) WIDE(10) WIDE(11) WIDE(12)
#endif
        }
#undef ROWS
#undef WIDE
        x += mr * K, y += mr * N, left -= mr;
    }
}

/* y[M][N] = x[M][K] w^T + bias; w packed by baton_pack; bias may be null. */
void NAME(linear)(const float *x, const WEIGHT *w, const float *bias, float *y, long M, long N,
                  long K) {
    const long num_panels = (N + PANEL - 1) / PANEL;
    const int group = M == 1 ? 4 : M <= 3 ? 2 : 1;
    const long num_groups = num_panels / group, rest = num_panels % group;
    long rows = L2_BYTES / 4 / K; /* rows of x that stay in the second-level cache */
    rows = rows < MR_MAX ? MR_MAX : rows / MR_MAX * MR_MAX;
    const long num_row_blocks = (M + rows - 1) / rows, items = num_groups + rest;
#pragma omp parallel for schedule(dynamic, 8)
    for (long item = 0; item < num_row_blocks * items; item++) {
        const long m0 = item / items * rows, g = item % items;
        const long panel = g < num_groups ? g * group : num_groups * group + (g - num_groups);
        NAME(panels)(g < num_groups ? group : 1, x + m0 * K, M - m0 < rows ? M - m0 : rows, K,
                     w + panel * PANEL * K, y + m0 * N, N, panel * PANEL, bias);
    }
}
