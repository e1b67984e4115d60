/* Vectors of floats in GCC's portable extension, and bfloat16 in and out of them.
 *
 * Everything here is elementwise or sums in a fixed order, so a row's result never depends on
 * the rows beside it. */
#ifndef BATON_VEC_H
#define BATON_VEC_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
#define VL 16
#else
#define VL 8
#endif

typedef float vf __attribute__((vector_size(4 * VL), may_alias, aligned(4)));
typedef int32_t vi __attribute__((vector_size(4 * VL), may_alias, aligned(4)));
typedef uint32_t vu __attribute__((vector_size(4 * VL), may_alias, aligned(4)));
typedef uint16_t vh __attribute__((vector_size(2 * VL), may_alias, aligned(2)));
typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_all(float x) { return x - (vf){0}; }

/* a * b + c, fused. Spelled out: left to itself GCC splits it in some loops and not in others
 * (its tuning for Zen), and a row would depend on which loop it went through. */
INLINE vf vfma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < VL; i++) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE float float_of_bf16(bf16 h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Round to nearest even; a NaN keeps a set bit. */
INLINE bf16 bf16_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

INLINE float load_f32(const float *p) { return *p; }
INLINE float load_bf16(const bf16 *p) { return float_of_bf16(*p); }
INLINE void store_f32(float *p, float x) { *p = x; }
INLINE void store_bf16(bf16 *p, float x) { *p = bf16_of_float(x); }

INLINE vf vload_f32(const float *p) { return *(const vf *)p; }
INLINE vf vload_bf16(const bf16 *p) { /* gcc 12 widens a generic vector in four steps, not one */
#if defined(__AVX512F__)
    vu bits = (vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    vu bits = (vu)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
#else
    vu bits = __builtin_convertvector(*(const vh *)p, vu);
#endif
    return (vf)(bits << 16);
}

INLINE void vstore_f32(float *p, vf x) { *(vf *)p = x; }
INLINE void vstore_bf16(bf16 *p, vf x) { /* a subnormal may become 0, where the CPU narrows */
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    vu bits = (vu)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    vi number = x == x;
    bits = ((vu)number & rounded) | (~(vu)number & ((bits >> 16) | 0x40));
    *(vh *)p = __builtin_convertvector(bits, vh);
#endif
}

/* By the type that p points to. */
#define LOAD(p) _Generic(*(p), float: load_f32, bf16: load_bf16)(p)
#define STORE(p, x) _Generic(*(p), float: store_f32, bf16: store_bf16)(p, x)
#define VLOAD(p) _Generic(*(p), float: vload_f32, bf16: vload_bf16)(p)
#define VSTORE(p, x) _Generic(*(p), float: vstore_f32, bf16: vstore_bf16)(p, x)

#if VL == 16
#define HALVES(v) __builtin_shuffle(v, (vi){8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7})
#define QUARTERS(v) __builtin_shuffle(v, (vi){4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11})
#define PAIRS(v) __builtin_shuffle(v, (vi){2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13})
#define ONES(v) __builtin_shuffle(v, (vi){1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14})
#else
#define HALVES(v) (v)
#define QUARTERS(v) __builtin_shuffle(v, (vi){4, 5, 6, 7, 0, 1, 2, 3})
#define PAIRS(v) __builtin_shuffle(v, (vi){2, 3, 0, 1, 6, 7, 4, 5})
#define ONES(v) __builtin_shuffle(v, (vi){1, 0, 3, 2, 5, 4, 7, 6})
#endif

/* Lanes added pairwise, always in the same order. */
INLINE float vsum(vf v) {
    if (VL == 16) v += HALVES(v);
    v += QUARTERS(v), v += PAIRS(v), v += ONES(v);
    return v[0];
}

INLINE vf joined(vf a, vf b, vi some, vi others) {
    return __builtin_shuffle(a, b, some) + __builtin_shuffle(a, b, others);
}

/* Lane i of the result is the sum of vector i's lanes: VL sums for the price of a few shuffles. */
INLINE vf vsums(const vf v[VL]) {
#if VL == 8
    const vi even = {0, 2, 8, 10, 4, 6, 12, 14}, odd = {1, 3, 9, 11, 5, 7, 13, 15};
    const vi low = {0, 1, 2, 3, 8, 9, 10, 11}, high = {4, 5, 6, 7, 12, 13, 14, 15};
#else
    const vi even = {0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30};
    const vi odd = {1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31};
    const vi low = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
    const vi high = {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};
#endif
    vf a[VL / 2], b[VL / 4], c[VL / 8]; /* of c, 128-bit parts are yet to be added where VL is 16 */
    for (int i = 0; i < VL / 2; i++) a[i] = joined(v[2 * i], v[2 * i + 1], even, odd);
    for (int i = 0; i < VL / 4; i++) b[i] = joined(a[2 * i], a[2 * i + 1], even, odd);
    for (int i = 0; i < VL / 8; i++) c[i] = joined(b[2 * i], b[2 * i + 1], low, high);
    return VL == 8 ? c[0] : joined(c[0], c[VL / 8 - 1], low, high);
}

/* b where either is NaN */
INLINE vf vmax(vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    vi first = a > b;
    return (vf)((first & (vi)a) | (~first & (vi)b));
#endif
}

INLINE float vtop(vf v) {
    v = vmax(v, HALVES(v)), v = vmax(v, QUARTERS(v)), v = vmax(v, PAIRS(v));
    return vmax(v, ONES(v))[0];
}

/* exp of each lane for x <= 0 (-inf gives 0), relative error below 2e-7. Cephes' expf. */
INLINE vf vexp(vf x) {
    const vf floor_ = vf_all(-87.3f);
    vi tiny = x < floor_;
    x = (vf)((tiny & (vi)floor_) | (~tiny & (vi)x));
    vf n = x * 1.44269504088896341f;
    n = (n + 12582912.0f) - 12582912.0f; /* nearest integer */
    vf r = vfma(n, vf_all(-0.693359375f), x);
    r = vfma(n, vf_all(2.12194440e-4f), r);
    vf p = vf_all(1.9875691500e-4f);
    p = vfma(p, r, vf_all(1.3981999507e-3f));
    p = vfma(p, r, vf_all(8.3334519073e-3f));
    p = vfma(p, r, vf_all(4.1665795894e-2f));
    p = vfma(p, r, vf_all(1.6666665459e-1f));
    p = vfma(p, r, vf_all(5.0000001201e-1f));
    p = vfma(p, r * r, r) + 1.0f;
    vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
    p = p * (vf)exponent;
    return (vf)(~tiny & (vi)p);
}

INLINE vf vselect(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf vabs(vf x) { return (vf)((vi)x & INT32_MAX); }

/* 1 / (1 + exp(-x)), never overflowing. */
INLINE vf vsigmoid(vf x) {
    vf e = vexp(-vabs(x));
    return vselect(x < 0.0f, e, vf_all(1.0f)) / (1.0f + e);
}

/* Cephes' tanhf: a polynomial near 0, where the quotient would cancel. */
INLINE vf vtanh(vf x) {
    vf size = vabs(x), e = vexp(-2.0f * size), z = x * x;
    vf p = vf_all(-5.70498872745e-3f);
    p = vfma(p, z, vf_all(2.06390887954e-2f));
    p = vfma(p, z, vf_all(-5.37397155531e-2f));
    p = vfma(p, z, vf_all(1.33314422036e-1f));
    p = vfma(p, z, vf_all(-3.33332819422e-1f));
    vf far = (vf)((vi)((1.0f - e) / (1.0f + e)) | ((vi)x & INT32_MIN));
    return vselect(size < 0.625f, vfma(p * z, x, x), far);
}

#endif
