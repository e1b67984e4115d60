/* The norms and the rotation of q and k, and the writing of k and v to the paged pool. */
#pragma GCC optimize("O3") /* the build is -O2: at -O3 linear.c takes six seconds to compile */
#include "heads.h"

struct turn { /* of one token: `num_turned` dims of a head, 0 for none */
    const float *cos, *sin;
    long num_turned;
};

INLINE void turned(const struct turn *turn, float *head) {
    const long half = turn->num_turned / 2;
    for (long d = 0; d < half; d++) {
        const float a = head[d], b = head[d + half];
        head[d] = a * turn->cos[d] - b * turn->sin[d];
        head[d + half] = b * turn->cos[d] + a * turn->sin[d];
    }
}

#define IO float
#define KV float
#define NAME(x) x##_f32_f32
#include "rotate.h"
#undef KV
#undef NAME
#define KV bf16
#define NAME(x) x##_f32_bf16
#include "rotate.h"
#undef IO
#undef NAME
#define IO bf16
#define NAME(x) x##_bf16_bf16
#include "rotate.h"
