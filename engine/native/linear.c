/* Linears for CPUs: weights packed in panels of PANEL output rows, [panel][k][row in panel].
 *
 * The weights are streamed once per block of rows of x that fits the second-level cache, the
 * outputs stay in registers over the whole of k, and each is the same sequence of fused
 * multiply-adds whatever M is: a row's result does not depend on the batch. */
#include "vec.h"

#define PANEL (2 * VL)
#define NP_MAX 4
#define L2_BYTES (256 << 10)
#if VL == 16
#define MR_MAX 12
#else
#define MR_MAX 6
#endif

long baton_panel(void) { return PANEL; }

INLINE void store_panel(float *y, long n, long N, const float *bias, const vf acc[2]) {
    float out[PANEL];
    if (n + PANEL <= N) {
        vf low = acc[0], high = acc[1];
        if (bias) low += vload_f32(bias + n), high += vload_f32(bias + n + VL);
        *(vf *)(y + n) = low, *(vf *)(y + n + VL) = high;
        return;
    }
    memcpy(out, acc, sizeof out);
    for (long i = 0; n + i < N && i < PANEL; i++) y[n + i] = out[i] + (bias ? bias[n + i] : 0.0f);
}

INLINE void load_pair_f32(const float *w, vf out[2]) {
    out[0] = vload_f32(w), out[1] = vload_f32(w + VL);
}

/* Rows i and VL + i of a panel share a 32-bit word: one shift and one mask widen a panel. */
INLINE void load_pair_bf16(const bf16 *w, vf out[2]) {
    vu both = *(const vu *)w;
    out[0] = (vf)(both << 16), out[1] = (vf)(both & 0xffff0000u);
}

#define WEIGHT float
#define NAME(x) x##_f32
#include "linear.h"
#undef WEIGHT
#undef NAME
#define WEIGHT bf16
#define NAME(x) x##_bf16
#include "linear.h"
