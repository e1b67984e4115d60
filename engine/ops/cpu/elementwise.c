/* RMSNorm with the residual, and the gated units. Rows are independent, sums in a fixed order. */
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

#define IO float
#define NAME(x) x##_f32
#include "elementwise.h"
#undef IO
#undef NAME
#define IO bf16
#define NAME(x) x##_bf16
#include "elementwise.h"
