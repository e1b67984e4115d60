/* Linears for CPUs: weights packed in panels of PANEL output rows, [panel][k][row in panel].
 *
 * The weights are streamed once per block of rows of x that fits the second-level cache, the
 * outputs stay in registers over the whole of k, and each is the same sequence of fused
 * multiply-adds whatever M is: a row's result does not depend on the batch. */
#include "vec.h"

#define PANEL (2 * VL)
#define NP_MAX 4
#define L2_BYTES (256 << 10)
#define AHEAD_BYTES 8192 /* of the weights, on their way to the cache */
#if VL == 16
#define MR_MAX 11 /* with 12 gcc runs out of registers for the addresses of x: 0.7 of the speed */
#else
#define MR_MAX 6
#endif

struct linear { /* of one expert; bias may be null */
    const void *weights;
    const float *bias;
};

long baton_panel(void) { return PANEL; }

/* Whether linear_dot is here: both sides bfloat16, multiplied in pairs. */
long baton_dot(void) {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

INLINE void biased(vf acc[2], const float *bias, long n, long N) {
    float own[PANEL] = {0};
    if (!bias) return;
    memcpy(own, bias + n, sizeof(float) * (N - n < PANEL ? N - n : PANEL));
    acc[0] += vload_f32(own), acc[1] += vload_f32(own + VL);
}

INLINE void store_panel_f32(float *y, long n, long N, const float *bias, vf acc[2]) {
    biased(acc, bias, n, N);
    if (n + PANEL <= N) *(vf *)(y + n) = acc[0], *(vf *)(y + n + VL) = acc[1];
    else memcpy(y + n, acc, sizeof(float) * (N - n));
}

INLINE void store_panel_bf16(bf16 *y, long n, long N, const float *bias, vf acc[2]) {
    bf16 out[PANEL];
    biased(acc, bias, n, N);
    bf16 *to = n + PANEL <= N ? y + n : out;
    vstore_bf16(to, acc[0]), vstore_bf16(to + VL, acc[1]);
    if (to == out) memcpy(y + n, out, sizeof(bf16) * (N - n));
}

#define WEIGHT float
#define X float
#define NAME(x) x##_f32
#define STEP 1
#define STORE_PANEL store_panel_f32
INLINE vf spread_f32(const float *x) { return vf_all(*x); }
INLINE void load_pair_f32(const float *w, vf out[2]) {
    out[0] = vload_f32(w), out[1] = vload_f32(w + VL);
}
INLINE vf product_f32(vf a, vf b, vf sum) { return vfma(a, b, sum); }
#include "linear.h"
#undef WEIGHT
#undef NAME

#define WEIGHT bf16
#define NAME(x) x##_bf16
INLINE vf spread_bf16(const float *x) { return vf_all(*x); }
/* Rows i and VL + i of a panel share a 32-bit word: one shift and one mask widen a panel. */
INLINE void load_pair_bf16(const bf16 *w, vf out[2]) {
    vu both = *(const vu *)w;
    out[0] = (vf)(both << 16), out[1] = (vf)(both & 0xffff0000u);
}
INLINE vf product_bf16(vf a, vf b, vf sum) { return vfma(a, b, sum); }
#include "linear.h"
#undef X
#undef NAME
#undef STEP
#undef STORE_PANEL

#if defined(__AVX512BF16__)
#define X bf16
#define NAME(x) x##_dot
#define STEP 2
#define STORE_PANEL store_panel_bf16
INLINE vf spread_dot(const bf16 *x) {
    int32_t both;
    memcpy(&both, x, 4);
    return (vf)_mm512_set1_epi32(both);
}
/* Features k and k + 1 of an output share a 32-bit word. */
INLINE void load_pair_dot(const bf16 *w, vf out[2]) {
    out[0] = vload_f32((const float *)w), out[1] = vload_f32((const float *)(w + 2 * VL));
}
INLINE vf product_dot(vf a, vf b, vf sum) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512)a, (__m512bh)(__m512)b);
}
#include "linear.h"
#endif
