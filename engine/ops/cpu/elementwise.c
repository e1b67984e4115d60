/* Norms with the residual, and the gated units. Rows are independent, sums in a fixed order. */
#pragma GCC optimize("O3") /* the build is -O2: at -O3 linear.c takes six seconds to compile */
#include "vec.h"

#define GRAIN 16384 /* elements below which waking the other threads costs more than it saves */
enum activation { SILU, GELU_TANH, SWIGLU_OAI }; /* engine.ops.contract.Activation */

INLINE vf activated(const enum activation activation, vf gate, vf up) {
    if (activation == SILU) return gate * vsigmoid(gate) * up;
    if (activation == GELU_TANH) {
        vf inner = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
        return 0.5f * gate * (1.0f + vtanh(inner)) * up;
    }
    gate = vselect(gate > 7.0f, vf_all(7.0f), gate); /* NaN stays */
    up = vselect(up > 7.0f, vf_all(7.0f), vselect(up < -7.0f, vf_all(-7.0f), up));
    return (up + 1.0f) * gate * vsigmoid(1.702f * gate);
}

struct norm { /* of one row; bias may be null */
    const float *weight, *bias;
    float mean, scale;
};

INLINE vf normed(const struct norm *norm, vf y, long k) {
    y = (y - norm->mean) * norm->scale * vload_f32(norm->weight + k);
    if (norm->bias) y += vload_f32(norm->bias + k);
    return y;
}

INLINE float normed_one(const struct norm *norm, float y, long k) {
    y = (y - norm->mean) * norm->scale * norm->weight[k];
    return norm->bias ? y + norm->bias[k] : y;
}

#define IO float
#define NAME(x) x##_f32
#include "elementwise.h"
#undef IO
#undef NAME
#define IO bf16
#define NAME(x) x##_bf16
#include "elementwise.h"
