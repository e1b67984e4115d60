/* RMSNorm with the residual, and SwiGLU. Rows are independent and sums are in a fixed order. */
#pragma GCC optimize("O3") /* the build is -O2: at -O3 linear.c takes six seconds to compile */
#include "vec.h"

#define GRAIN 16384 /* elements below which waking the other threads costs more than it saves */

INLINE float inverse_rms(const float *x, long K, float eps) {
    vf sum = {0};
    long k = 0;
    for (; k + VL <= K; k += VL) {
        vf v = vload_f32(x + k);
        sum = vfma(v, v, sum);
    }
    float total = vsum(sum);
    for (; k < K; k++) total += x[k] * x[k];
    return 1.0f / sqrtf(total / (float)K + eps);
}

#define IO float
#define NAME(x) x##_f32
#define LOAD load_f32
#define STORE store_f32
#define VLOAD vload_f32
#include "elementwise.h"
#undef IO
#undef NAME
#undef LOAD
#undef STORE
#undef VLOAD
#define IO bf16
#define NAME(x) x##_bf16
#define LOAD load_bf16
#define STORE store_bf16
#define VLOAD vload_bf16
#include "elementwise.h"
