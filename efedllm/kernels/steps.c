/* The steps of the exact profile between its products: norms, rotations, attention, activations. docs/exact.md is the
 * specification; efedllm/engine/exact/arithmetic.py and attention.py are the same in torch.
 *
 * Everything is either an element-wise IEEE operation, rounded by itself (compile with -ffp-contract=off, never with
 * -ffast-math), or a maximum or a sum of integers that its type holds exactly, so that no order or vector width shows.
 * NaN and infinity need no care: they reach the result as NaN or infinity, which the caller refuses.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Instruction sets: 0 the compiler's own, 1 AVX2, 2 AVX-512. Tests build with less than a machine has. */
#ifndef EFL_MOST_LEVEL
#define EFL_MOST_LEVEL 2
#endif
#define INLINE static inline __attribute__((always_inline))
/* Loops that keep their sums in registers only where they are functions of their own. */
#define NOINLINE __attribute__((noinline))

enum {
    LANES = 8,
    MOST_SPLIT = 512, /* longest head */
    BLOCK = 4,        /* queries that share keys and values */
    TILE = 16,        /* keys that they are multiplied with at once */
    FEW = 4,          /* fewer queries than this are not worth arranging the keys for */
};

static const double TINY = 0x1p-400, Q_MAX = 32639, LOG2_E = 0x1.71547652b82fep+0;
static const double GELU_CUBE = 0x1.6e4e26d4801f7p-5, GELU_SLOPE = 0x1.9884533d43651p+0;
static const float C0 = 0x1.0p+0f, C1 = 0x1.62e430p-1f, C2 = 0x1.ebfbe0p-3f, C3 = 0x1.c6b08ep-5f;
static const float C4 = 0x1.3b2ab6p-7f, C5 = 0x1.5d87fep-10f, C6 = 0x1.430912p-13f;

/* Quotients up to 2^20 that are to be rounded to integers are taken as products with the inverse: less than 2^-31 away
 * from the quotient rounded to float64. Where one lies further than this from the nearest integer, all are divided. */
static const double SURE = 0.5 - 0x1p-24;

INLINE double from_bits(int64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

INLINE int64_t to_bits(double x) {
    int64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

INLINE double power_of_two(int64_t exponent) { return from_bits((exponent + 1023) << 52); }

INLINE int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

INLINE int64_t room(int64_t size) { return up_to(size, 64); }

INLINE int32_t pair(const int16_t *two) {
    int32_t both;
    memcpy(&both, two, 4);
    return both;
}

/* How many of `m` numbers vector `k` of LANES has. */
INLINE int64_t left_of(int64_t m, int k) { return m > LANES * k ? m - LANES * k : 0; }

static int64_t bits_above(int64_t n) {
    int64_t bits = 0;
    while (((n - 1) >> bits) > 0) bits++;
    return bits;
}

typedef double eight __attribute__((vector_size(64)));
typedef int64_t bits8 __attribute__((vector_size(64)));
typedef float eight_floats __attribute__((vector_size(32)));
typedef int32_t eight_words __attribute__((vector_size(32)));
typedef int16_t eight_shorts __attribute__((vector_size(16)));

typedef struct {
    const int16_t *keys, *values;            /* [kv_heads, positions, dim], heads head_stride apart */
    const double *key_scales, *value_scales; /* [kv_heads, positions], heads scale_stride apart */
    int64_t kv_heads, positions, dim, head_stride, scale_stride;
} cached;

typedef struct {
    const int16_t *q; /* [n, heads, dim], tokens stride apart */
    int64_t stride, n, heads;
} queries;

/* ---- one copy of the steps per instruction set ---- */

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(f, LEVEL)

#define LEVEL plain
#include "rowsteps.h"
#include "attention.h"
#undef LEVEL

#if defined(__x86_64__) && EFL_MOST_LEVEL >= 1
#define LEVEL avx2
#define USE_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "rowsteps.h"
#include "attention.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "rowsteps.h"
#include "attention.h"
#pragma GCC pop_options
#endif
#undef USE_AVX2
#undef LEVEL
#endif

#if defined(__x86_64__) && EFL_MOST_LEVEL >= 2
#define LEVEL avx512
#define USE_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#include "rowsteps.h"
#include "attention.h"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#include "rowsteps.h"
#include "attention.h"
#pragma GCC pop_options
#endif
#undef USE_AVX512
#undef LEVEL
#endif

#define STEPS(level) {norm_##level, heads_##level, attend_##level, gated_##level, gelu_##level, add_##level, canonical_##level, \
                      tap_##level, weights_##level}

typedef int64_t (*weights_function)(const float *, int64_t, double, int32_t *);

typedef struct {
    void (*norm)(const float *, int64_t, int64_t, const double *, const double *, double, double *);
    void (*heads)(double *, int64_t, int64_t, int64_t, int64_t, const double *, const double *, double, const double *,
                  const double *, int16_t *, double *);
    void (*attend)(const cached *, const queries *, const double *, int64_t, double, int64_t, double *, char *);
    void (*gated)(const double *, int64_t, int64_t, double *);
    void (*gelu)(const double *, int64_t, double *);
    void (*add)(const float *, const double *, int64_t, float *);
    int (*canonical)(const double *, int64_t, float *);
    void (*tap)(const double *, int64_t, int64_t, const int64_t *, int64_t, char *);
    weights_function weights;
} steps;

static const steps *chosen(void) {
    static const steps plain = STEPS(plain);
#if defined(__x86_64__) && EFL_MOST_LEVEL >= 2
    static const steps avx512 = STEPS(avx512);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return &avx512;
#endif
#if defined(__x86_64__) && EFL_MOST_LEVEL >= 1
    static const steps avx2 = STEPS(avx2);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#endif
    return &plain;
}

#include "sampling.h"

/* x float [n, d] -> y double [n, d]: RMSNorm, or LayerNorm with a bias. */
void efl_norm(const float *x, int64_t n, int64_t d, const double *weight, const double *bias, double eps, double *y) {
    chosen()->norm(x, n, d, weight, bias, eps, y);
}

/* y double [n, (heads + 2 * kv_heads) * dim], queries, keys and values, which it overwrites -> q int16 of the same shape
 * and scales double [n, heads + 2 * kv_heads]. query_norm, key_norm: weights [dim] of head norms, or NULL. cos, sin
 * double [n, dim / 2], or NULL for a model that turns nothing. */
void efl_heads(double *y, int64_t n, int64_t heads, int64_t kv_heads, int64_t dim, const double *query_norm,
               const double *key_norm, double eps, const double *cos, const double *sin, int16_t *q, double *scales) {
    chosen()->heads(y, n, heads, kv_heads, dim, query_norm, key_norm, eps, cos, sin, q, scales);
}

/* Bytes of work that `efl_attend` needs. */
int64_t efl_attend_room(const cached *c) {
    int64_t stride = up_to(c->positions, TILE), half = (c->dim + 1) / 2;
    return room(stride * half * 4) + room(BLOCK * stride * 8) + room(stride * 4) + 64;
}

/* The last n of the cached positions look back, with a window > 0 at that many. q int16 [n, heads, dim], tokens q_stride
 * apart; factors double [n, heads], tokens factor_stride apart; out double [n, heads * dim]. dim <= MOST_SPLIT. */
void efl_attend(const cached *c, const int16_t *q, int64_t q_stride, const double *factors, int64_t factor_stride,
                double scaling, int64_t n, int64_t heads, int64_t window, double *out, char *work) {
    const queries asked = {q, q_stride, n, heads};
    work = (char *)room((int64_t)work);
    chosen()->attend(c, &asked, factors, factor_stride, scaling, window, out, work);
}

/* y double [n, 2 * width], gate beside up -> silu(gate) * up, double [n, width]. */
void efl_gated(const double *y, int64_t n, int64_t width, double *out) { chosen()->gated(y, n, width, out); }

/* GELU by tanh, double [n]. */
void efl_gelu(const double *x, int64_t n, double *out) { chosen()->gelu(x, n, out); }

/* canonical(x + y): float, without -0 and subnormal numbers. */
void efl_add(const float *x, const double *y, int64_t n, float *out) { chosen()->add(x, y, n, out); }

/* canonical(x), double [n] -> float. Returns whether all are finite. */
int efl_canonical(const double *x, int64_t n, float *out) { return chosen()->canonical(x, n, out); }

/* Taps of the rows of x double [n, width]: each its scale and its integers at `count` places, little-endian on machines that
 * are, out [n, 8 + 2 * count] bytes. */
void efl_tap(const double *x, int64_t n, int64_t width, const int64_t *where, int64_t count, char *out) {
    chosen()->tap(x, n, width, where, count, out);
}

/* Bytes of work that `efl_sample` needs. */
int64_t efl_sample_room(int64_t vocab) { return sample_room(vocab); }

/* The token of every row of finite logits [n, vocab] at a temperature in thousandths above 0: out [n]. top_k 0 and top_p
 * 1000000 (millionths) are off; draws [n] are uniform in [0, 2^64). vocab < 2^31. */
void efl_sample(const float *logits, int64_t n, int64_t vocab, int64_t temperature, int64_t top_k, int64_t top_p,
                const uint64_t *draws, int64_t *out, char *work) {
    const scratch b = scratch_of(work, vocab);
    const weights_function weights = chosen()->weights;
    for (int64_t row = 0; row < n; row++)
        out[row] = sample_row(logits + row * vocab, vocab, temperature, top_k, top_p, draws[row], weights, &b);
}

/* Where the `top` highest of every row of finite x [n, width] are, of equal ones the first: [n, top], ascending in a row.
 * 0 < top <= width. `efl_sample_room` says how much work it needs. */
void efl_highest(const float *x, int64_t n, int64_t width, int64_t top, int32_t *places, char *work) {
    const scratch b = scratch_of(work, width);
    for (int64_t row = 0; row < n; row++) {
        highest(x + row * width, width, top, &b);
        memcpy(places + row * top, b.ids, (size_t)top * sizeof *places);
    }
}
