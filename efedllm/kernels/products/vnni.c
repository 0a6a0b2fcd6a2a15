/* AVX-512 with VNNI. Few tokens: bytes of weights, as unsigned, times the high and the low byte of activations, from the
 * registers they are unpacked into. Many: int16 times int16, which takes as many instructions.
 */
#if defined(__x86_64__)
#include <immintrin.h>
#include <float.h>
#include <math.h>

#include "products.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,prefer-vector-width=512")
#endif
#define USE_VNNI
#include "unpack.h"

enum {
    STEP = 4,
    WIDE = 4,
    HEIGHT = 6,
    STRIP = 512, /* columns of a group that are multiplied at once: 2^7 * 2^7 * 2^7 * 512 <= 2^30 */
};

/* Of columns whose sums, times multipliers, stay below 2^31: 2^7 * 2^7 * 2^(bits-1) each. */
INLINE int64_t most_columns(int64_t bits) { return (int64_t)1 << (17 - bits); }

typedef int32_t four __attribute__((aligned(1), may_alias));

/* sum[i] += the products of four pairs; of bytes, and of two int16. The compiler copies the accumulators of the intrinsics
 * from register to register, and to memory. */
INLINE __m512i plus_fours(__m512i sum, __m512i v, const int8_t *q) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(v), "m"(*(const four *)q));
    return sum;
}

INLINE __m512i plus_pairs(__m512i sum, __m512i v, __m512i q) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(v), "v"(q));
    return sum;
}

INLINE int64_t strip_of(const matrix *m) { return m->mult ? STRIP : m->cols + UNIT; }

typedef struct {
    const uint8_t *tiles;      /* of the panel */
    const int8_t *mult;        /* of the panel, or NULL */
    const int8_t *high, *low;  /* of the first token */
    const int32_t *sums;
    int64_t between;           /* segments' sums */
    double (*totals)[ROWS];
} pass;

/* totals[t][row] = sum of value * multiplier * activation, for T tokens. */
INLINE void pass_of(const pass *a, const layout *l, int64_t strip, const int T, const int BITS) {
    enum { PARTS = 4 };
    const int U = T == 1 ? 4 : T == 4 ? 1 : 2;
    const __m512i flip = _mm512_set1_epi8(-128);
    const uint8_t *w = a->tiles;
    const int8_t *high = a->high, *low = a->low;
    const int32_t *sums = a->sums;
    __m512i above[STEP], below[STEP], h[STEP][PARTS], s[STEP][PARTS];
    int64_t held = 0;
    for (int t = 0; t < T; t++) above[t] = below[t] = _mm512_setzero_si512();
    memset(a->totals, 0, (size_t)T * sizeof *a->totals);
    for (int64_t g = 0; g < l->groups; g++) {
        const int64_t wide = g + 1 < l->groups ? l->padded : l->last;
        const __m512i mult = a->mult ? _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(a->mult + g * ROWS)))
                                     : _mm512_set1_epi32(1);
        for (int64_t start = 0; start < wide; start += strip, sums += a->between) {
            const int64_t columns = least(wide - start, strip);
            for (int t = 0; t < T; t++) {
                /* What the weights, taken 2^(bits-1) too large, are too much. */
                h[t][0] = _mm512_set1_epi32(sums[2 * t]);
                s[t][0] = _mm512_set1_epi32(sums[2 * t + 1]);
                for (int u = 1; u < U; u++) h[t][u] = s[t][u] = _mm512_setzero_si512();
            }
#define TIMES(v, u, k)                                                                    \
    _Pragma("GCC unroll 4") for (int t = 0; t < T; t++) {                                 \
        h[t][u] = plus_fours(h[t][u], v, high + t * l->cols + 4 * (k));                   \
        s[t][u] = plus_fours(s[t][u], v, low + t * l->cols + 4 * (k));                    \
    }
            if (BITS == 8) {
                int64_t k = 0;
                for (; k + U <= columns / 4; k += U)
#pragma GCC unroll 4
                    for (int u = 0; u < U; u++) {
                        const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + (k + u) * TILE), flip);
                        __builtin_prefetch(w + (k + u) * TILE + AHEAD);
                        TIMES(v, u, k + u)
                    }
                for (; k < columns / 4; k++) {
                    const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + k * TILE), flip);
                    TIMES(v, 0, k)
                }
                w += columns * ROWS, high += columns, low += columns;
            } else
                for (int64_t k = 0; k < columns; k += UNIT, w += ROWS * UNIT * BITS / 8, high += UNIT, low += UNIT) {
                    words v[8];
                    for (int i = 0; i < BITS; i++) __builtin_prefetch(w + i * TILE + AHEAD);
                    unit(w, BITS, v);
#pragma GCC unroll 8
                    for (int i = 0; i < 8; i++) { TIMES((__m512i)v[i], i % U, i) }
                }
#undef TIMES
            for (int t = 0; t < T; t++) {
                for (int u = 1; u < U; u++) {
                    h[t][0] = _mm512_add_epi32(h[t][0], h[t][u]);
                    s[t][0] = _mm512_add_epi32(s[t][0], s[t][u]);
                }
                if (a->mult) {
                    h[t][0] = _mm512_mullo_epi32(h[t][0], mult);
                    s[t][0] = _mm512_mullo_epi32(s[t][0], mult);
                }
                above[t] = _mm512_add_epi32(above[t], h[t][0]);
                below[t] = _mm512_add_epi32(below[t], s[t][0]);
            }
            held += columns;
            if ((a->mult && held + strip > most_columns(BITS)) || (g + 1 == l->groups && start + strip >= wide)) {
                for (int t = 0; t < T; t++) {
                    /* Integers below 2^53. */
                    for (int i = 0; i < 2; i++) {
                        const __m512d up = _mm512_cvtepi32_pd(i ? _mm512_extracti64x4_epi64(above[t], 1)
                                                                : _mm512_castsi512_si256(above[t]));
                        const __m512d down = _mm512_cvtepi32_pd(i ? _mm512_extracti64x4_epi64(below[t], 1)
                                                                  : _mm512_castsi512_si256(below[t]));
                        double *to = a->totals[t] + 8 * i;
                        const __m512d all = _mm512_fmadd_pd(up, _mm512_set1_pd(256), down);
                        _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), all));
                    }
                    above[t] = below[t] = _mm512_setzero_si512();
                }
                held = 0;
            }
        }
    }
}

#define PASSES(T)                                                        \
    static void pass##T(const pass *a, const layout *l, int64_t strip, int64_t bits) { \
        switch (bits) {                                                  \
        case 2: pass_of(a, l, strip, T, 2); break;                       \
        case 3: pass_of(a, l, strip, T, 3); break;                       \
        case 4: pass_of(a, l, strip, T, 4); break;                       \
        case 5: pass_of(a, l, strip, T, 5); break;                       \
        case 6: pass_of(a, l, strip, T, 6); break;                       \
        default: pass_of(a, l, strip, T, 8);                             \
        }                                                                \
    }
PASSES(1)
PASSES(2)
PASSES(3)
PASSES(4)

/* Rows of panels [first, last) for all tokens of `a`: (integer sum * token scale) * row scale. */
static void few(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    static void (*const passes[])(const pass *, const layout *, int64_t, int64_t) = {pass1, pass2, pass3, pass4};
    const layout l = a->shape;
    const int64_t size = panel_bytes(m), strip = strip_of(m);
    double totals[STEP][ROWS] __attribute__((aligned(64)));
    for (int64_t p = first; p < last; p++)
        for (int64_t from = 0, count; from < a->tokens; from += count) {
            count = least(a->tokens - from, STEP);
            const pass one = {
                m->tiles + p * size, m->mult ? m->mult + p * l.groups * ROWS : NULL, a->high + from * l.cols,
                a->low + from * l.cols, a->sums + 2 * from, 2 * a->tokens, totals,
            };
            passes[count - 1](&one, &l, strip, m->bits);
            const int64_t rows = least(m->rows - p * ROWS, ROWS);
            for (int64_t t = 0; t < count; t++) {
                double *y = to->exact + (from + t) * to->stride + p * ROWS;
                for (int64_t r = 0; r < rows; r++) {
                    double value = totals[t][r] * a->scale[from + t];
                    if (m->scale) value *= (double)m->scale[p * ROWS + r];
                    y[r] = to->add ? y[r] + value : value;
                }
            }
        }
}

/* High and low bytes of the integers of every group, filled up with zeros, and their sums over each strip times
 * -2^(bits-1). */
static void arrange_few(const matrix *m, const int16_t *q, activations *a, char *space) {
    const layout l = layout_of(m);
    const int64_t n = a->tokens, strip = strip_of(m);
    const __m512i ones = _mm512_set1_epi8(1);
    const int32_t over = 1 << (m->bits - 1);
    /* Whole vectors are written: what a strip writes too much, the next one overwrites. */
    int8_t *high = (int8_t *)space, *low = high + room(n * l.cols + 64);
    int32_t *sums = (int32_t *)(low + room(n * l.cols + 64));
    a->shape = l, a->high = high, a->low = low, a->sums = sums;
    for (int64_t t = 0; t < n; t++, q += m->cols) {
        int32_t *sum = sums + 2 * t;
        for (int64_t g = 0; g < l.groups; g++) {
            const int64_t wide = g + 1 < l.groups ? l.padded : l.last, end = least(m->cols - g * l.group, l.group);
            for (int64_t start = 0; start < wide; start += strip, sum += 2 * n) {
                const int64_t columns = least(wide - start, strip);
                __m512i all[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
                for (int64_t k = start; k < start + columns; k += 32) {
                    const int64_t real = end - k;
                    const __mmask32 mask = real >= 32 ? UINT32_MAX : real <= 0 ? 0 : (1u << real) - 1;
                    const __m512i v = _mm512_maskz_loadu_epi16(mask, q + g * l.group + k);
                    const __m512i above = _mm512_srai_epi16(_mm512_add_epi16(v, _mm512_set1_epi16(128)), 8);
                    const __m256i h = _mm512_cvtepi16_epi8(above), s = _mm512_cvtepi16_epi8(v);
                    all[0] = _mm512_dpbusd_epi32(all[0], ones, _mm512_castsi256_si512(h));
                    all[1] = _mm512_dpbusd_epi32(all[1], ones, _mm512_castsi256_si512(s));
                    _mm256_storeu_si256((__m256i *)(high + k - start), h);
                    _mm256_storeu_si256((__m256i *)(low + k - start), s);
                }
                sum[0] = -over * _mm512_reduce_add_epi32(_mm512_zextsi256_si512(_mm512_castsi512_si256(all[0])));
                sum[1] = -over * _mm512_reduce_add_epi32(_mm512_zextsi256_si512(_mm512_castsi512_si256(all[1])));
                high += columns, low += columns;
            }
        }
    }
}

INLINE void tally_of(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *totals, const int R,
                     const int T) {
    __m512i s[HEIGHT * WIDE], v[WIDE];
#pragma GCC unroll 24
    for (int i = 0; i < T * R; i++) s[i] = _mm512_setzero_si512();
    for (int64_t k = 0; k < pairs; k++, w += R * 2 * ROWS, q += 2) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) v[r] = _mm512_load_si512(w + r * 2 * ROWS);
#pragma GCC unroll 6
        for (int t = 0; t < T; t++) {
            const __m512i pair = _mm512_set1_epi32(load4(q + t * stride));
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) s[t * R + r] = plus_pairs(s[t * R + r], v[r], pair);
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < T * R; i++) {
        __m512i *lower = (__m512i *)(totals + i * 2 * ROWS), *rest = lower + 1;
        *lower = _mm512_add_epi32(*lower, _mm512_and_si512(s[i], _mm512_set1_epi32(0xffff)));
        *rest = _mm512_add_epi32(*rest, _mm512_srai_epi32(s[i], 16));
    }
}

#define TALLY(R)                                                                                                           \
    static void tally##R(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *totals, int64_t count) { \
        switch (count) {                                                                                                   \
        case 1: tally_of(w, q, stride, pairs, totals, R, 1); break;                                                        \
        case 2: tally_of(w, q, stride, pairs, totals, R, 2); break;                                                        \
        case 3: tally_of(w, q, stride, pairs, totals, R, 3); break;                                                        \
        case 4: tally_of(w, q, stride, pairs, totals, R, 4); break;                                                        \
        case 5: tally_of(w, q, stride, pairs, totals, R, 5); break;                                                        \
        default: tally_of(w, q, stride, pairs, totals, R, 6);                                                              \
        }                                                                                                                  \
    }
TALLY(1)
TALLY(2)
TALLY(4)

static void tally(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *totals, int64_t wide,
                  int64_t count) {
    (wide == 4 ? tally4 : wide == 2 ? tally2 : tally1)(w, q, stride, pairs, totals, count);
}

#include "many.h"
#include "floats.h"
#include "tokens.h"

const functions efl_vnni = {few, many, floats, arrange_few, arrange_many, expand, quantize, 20};

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
typedef int efl_no_vnni;
#endif
