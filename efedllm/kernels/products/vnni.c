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
    PANELS = 2, /* that few tokens multiply together */
    WIDE = 4,
    HEIGHT = 6,
    STRIP = 512, /* columns of a group that are multiplied at once: 2^7 * 2^7 * 2^7 * 512 <= 2^30 */
};

/* Of columns whose sums, times multipliers, stay below 2^31: 2^7 * 2^7 * 2^(bits-1) each. */
INLINE int64_t most_columns(int64_t bits) { return (int64_t)1 << (17 - bits); }

typedef int32_t four __attribute__((aligned(1), may_alias));

/* sum[i] += the products of four pairs; of bytes, and of two int16. The compiler copies the accumulators of the intrinsics
 * from register to register, and to memory. */
INLINE __m512i plus_fours_at(__m512i sum, __m512i v, const int8_t *q) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(v), "m"(*(const four *)q));
    return sum;
}

INLINE __m512i plus_fours(__m512i sum, __m512i v, __m512i q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(v), "v"(q));
    return sum;
}

INLINE __m512i plus_pairs(__m512i sum, __m512i v, __m512i q) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(v), "v"(q));
    return sum;
}

INLINE int64_t strip_of(const matrix *m) { return m->mult ? STRIP : m->cols + UNIT; }

typedef struct {
    const uint8_t *tiles;     /* of the first panel */
    const int8_t *mult;       /* of the first panel, or NULL */
    int64_t size, mults;      /* bytes of a panel's tiles and multipliers */
    const int8_t *high, *low; /* of the first token */
    const int32_t *sums;
    int64_t between;          /* segments' sums */
    double (*totals)[STEP][ROWS];
} pass;

/* to[16] += 256 * above + below, all of them integers below 2^53. */
INLINE void plus_sums(double *to, __m512i above, __m512i below) {
    for (int i = 0; i < 2; i++, to += 8) {
        const __m512d up = _mm512_cvtepi32_pd(i ? _mm512_extracti64x4_epi64(above, 1) : _mm512_castsi512_si256(above));
        const __m512d down = _mm512_cvtepi32_pd(i ? _mm512_extracti64x4_epi64(below, 1) : _mm512_castsi512_si256(below));
        const __m512d all = _mm512_fmadd_pd(up, _mm512_set1_pd(256), down);
        _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), all));
    }
}

INLINE __m512i multipliers(const int8_t *from) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)); }

/* How much further than its own weights' place what is fetched for a panel lies, at `w` of the first panel: the end of the
 * first panel of a pair is followed by the next pair, for both. */
INLINE int64_t ahead_of(const pass *a, const uint8_t *w, const int P) {
    return AHEAD + (P > 1 && w + AHEAD >= a->tiles + a->size ? a->size : 0);
}

/* totals[p][t][row] = sum of value * multiplier * activation, for T tokens and P panels, which share what is read of the
 * activations. */
INLINE void pass_of(const pass *a, const layout *l, int64_t strip, const int T, const int P, const int BITS) {
    enum { PARTS = 4 };
    const int U = P * T == 1 ? 4 : P * T < 4 ? 2 : 1;
    const __m512i flip = _mm512_set1_epi8(-128), nibble = _mm512_set1_epi8(15);
    const int64_t size = a->size;
    const uint8_t *w = a->tiles;
    const int8_t *high = a->high, *low = a->low;
    const int32_t *sums = a->sums;
    __m512i above[PANELS][STEP], below[PANELS][STEP], h[PANELS][STEP][PARTS], s[PANELS][STEP][PARTS], v[PANELS];
    int64_t held = 0;
    for (int p = 0; p < P; p++) {
        for (int t = 0; t < T; t++) above[p][t] = below[p][t] = _mm512_setzero_si512();
        memset(a->totals[p], 0, (size_t)T * sizeof *a->totals[p]);
    }
    for (int64_t g = 0; g < l->groups; g++) {
        const int64_t wide = g + 1 < l->groups ? l->padded : l->last;
        for (int64_t start = 0; start < wide; start += strip, sums += a->between) {
            const int64_t columns = least(wide - start, strip);
            for (int p = 0; p < P; p++)
                for (int t = 0; t < T; t++) {
                    /* What the weights, taken 2^(bits-1) too large, are too much. */
                    h[p][t][0] = _mm512_set1_epi32(sums[2 * t]);
                    s[p][t][0] = _mm512_set1_epi32(sums[2 * t + 1]);
                    for (int u = 1; u < U; u++) h[p][t][u] = s[p][t][u] = _mm512_setzero_si512();
                }
/* Tile number k of the strip, of each panel in v. */
#define TIMES(u, k)                                                                                       \
    _Pragma("GCC unroll 4") for (int t = 0; t < T; t++) {                                                 \
        const int8_t *const upper = high + t * l->cols + 4 * (k), *const lower = low + t * l->cols + 4 * (k); \
        if (P == 1) {                                                                                     \
            h[0][t][u] = plus_fours_at(h[0][t][u], v[0], upper);                                          \
            s[0][t][u] = plus_fours_at(s[0][t][u], v[0], lower);                                          \
        } else {                                                                                          \
            const __m512i q = _mm512_set1_epi32(load4(upper)), r = _mm512_set1_epi32(load4(lower));       \
            _Pragma("GCC unroll 2") for (int p = 0; p < P; p++) {                                         \
                h[p][t][u] = plus_fours(h[p][t][u], v[p], q);                                             \
                s[p][t][u] = plus_fours(s[p][t][u], v[p], r);                                             \
            }                                                                                             \
        }                                                                                                 \
    }
            if (BITS == 8) {
                int64_t k = 0;
                for (; k + U <= columns / 4; k += U)
#pragma GCC unroll 4
                    for (int u = 0; u < U; u++) {
                        const uint8_t *const first = w + (k + u) * TILE;
                        const int64_t ahead = ahead_of(a, first, P);
#pragma GCC unroll 2
                        for (int p = 0; p < P; p++) {
                            fetch_line(first + p * size + ahead);
                            v[p] = _mm512_xor_si512(_mm512_loadu_si512(first + p * size), flip);
                        }
                        TIMES(u, k + u)
                    }
                for (; k < columns / 4; k++) {
#pragma GCC unroll 2
                    for (int p = 0; p < P; p++)
                        v[p] = _mm512_xor_si512(_mm512_loadu_si512(w + p * size + k * TILE), flip);
                    TIMES(0, k)
                }
                w += columns * ROWS, high += columns, low += columns;
            } else if (BITS == 4)
                for (int64_t k = 0; k < columns; k += UNIT, w += ROWS * UNIT / 2, high += UNIT, low += UNIT) {
                    const int64_t ahead = ahead_of(a, w, P);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) {
                        __m512i two[PANELS];
#pragma GCC unroll 2
                        for (int p = 0; p < P; p++) {
                            const uint8_t *const from = w + p * size + i * TILE;
                            fetch_line(from + ahead);
                            two[p] = _mm512_loadu_si512(from);
                            v[p] = _mm512_and_si512(two[p], nibble);
                        }
                        TIMES(i % U, i)
#pragma GCC unroll 2
                        for (int p = 0; p < P; p++) v[p] = _mm512_and_si512(_mm512_srli_epi16(two[p], 4), nibble);
                        TIMES(i % U, i + 4)
                    }
                }
            else
                for (int64_t k = 0; k < columns; k += UNIT, w += ROWS * UNIT * BITS / 8, high += UNIT, low += UNIT) {
                    words tiles[8];
                    for (int i = 0; i < BITS; i++) fetch_line(w + i * TILE + AHEAD);
                    unit(w, BITS, tiles);
#pragma GCC unroll 8
                    for (int i = 0; i < 8; i++) {
                        v[0] = (__m512i)tiles[i];
                        TIMES(i % U, i)
                    }
                }
#undef TIMES
            for (int p = 0; p < P; p++) {
                const __m512i mult = a->mult ? multipliers(a->mult + p * a->mults + g * ROWS) : _mm512_set1_epi32(1);
                for (int t = 0; t < T; t++) {
                    for (int u = 1; u < U; u++) {
                        h[p][t][0] = _mm512_add_epi32(h[p][t][0], h[p][t][u]);
                        s[p][t][0] = _mm512_add_epi32(s[p][t][0], s[p][t][u]);
                    }
                    if (a->mult) {
                        h[p][t][0] = _mm512_mullo_epi32(h[p][t][0], mult);
                        s[p][t][0] = _mm512_mullo_epi32(s[p][t][0], mult);
                    }
                    above[p][t] = _mm512_add_epi32(above[p][t], h[p][t][0]);
                    below[p][t] = _mm512_add_epi32(below[p][t], s[p][t][0]);
                }
            }
            held += columns;
            if ((a->mult && held + strip > most_columns(BITS)) || (g + 1 == l->groups && start + strip >= wide)) {
                for (int p = 0; p < P; p++)
                    for (int t = 0; t < T; t++) {
                        plus_sums(a->totals[p][t], above[p][t], below[p][t]);
                        above[p][t] = below[p][t] = _mm512_setzero_si512();
                    }
                held = 0;
            }
        }
    }
}

#define PASSES(T)                                                                     \
    static void pass##T(const pass *a, const layout *l, int64_t strip, int64_t bits) { \
        switch (bits) {                                                               \
        case 2: pass_of(a, l, strip, T, 1, 2); break;                                 \
        case 3: pass_of(a, l, strip, T, 1, 3); break;                                 \
        case 4: pass_of(a, l, strip, T, 1, 4); break;                                 \
        case 5: pass_of(a, l, strip, T, 1, 5); break;                                 \
        case 6: pass_of(a, l, strip, T, 1, 6); break;                                 \
        default: pass_of(a, l, strip, T, 1, 8);                                       \
        }                                                                             \
    }                                                                                 \
    static void pair##T(const pass *a, const layout *l, int64_t strip, int64_t bits) { \
        if (bits == 4)                                                                \
            pass_of(a, l, strip, T, PANELS, 4);                                       \
        else                                                                          \
            pass_of(a, l, strip, T, PANELS, 8);                                       \
    }
PASSES(1)
PASSES(2)
PASSES(3)
PASSES(4)

/* Rows of panels [first, last) for all tokens of `a`: (integer sum * token scale) * row scale. */
static void few(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    static void (*const passes[][STEP])(const pass *, const layout *, int64_t, int64_t) = {
        {pass1, pass2, pass3, pass4}, {pair1, pair2, pair3, pair4},
    };
    const layout l = a->shape;
    const int64_t size = panel_bytes(m), strip = strip_of(m), mults = l.groups * ROWS;
    /* What other numbers of bits are unpacked into takes the registers of a second panel. */
    const int64_t most = m->bits == 4 || m->bits == 8 ? PANELS : 1;
    double totals[PANELS][STEP][ROWS] __attribute__((aligned(64)));
    for (int64_t p = first, panels; p < last; p += panels) {
        panels = least(last - p, most);
        for (int64_t from = 0, count; from < a->tokens; from += count) {
            count = least(a->tokens - from, STEP);
            const pass one = {
                m->tiles + p * size, m->mult ? m->mult + p * mults : NULL, size, mults, a->high + from * l.cols,
                a->low + from * l.cols, a->sums + 2 * from, 2 * a->tokens, totals,
            };
            passes[panels - 1][count - 1](&one, &l, strip, m->bits);
            for (int64_t i = 0; i < panels * count; i++) {
                const int64_t panel = i / count, t = i % count, row = (p + panel) * ROWS;
                const double *sum = totals[panel][t];
                double *y = to->exact + (from + t) * to->stride + row;
                for (int64_t r = 0; r < least(m->rows - row, ROWS); r++) {
                    double value = sum[r] * a->scale[from + t];
                    if (m->scale) value *= (double)m->scale[row + r];
                    y[r] = to->add ? y[r] + value : value;
                }
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

INLINE void tally_of(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, const int R,
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
    for (int i = 0; i < T * R; i++) _mm512_store_si512(sums + i * ROWS, s[i]);
}

#define TALLY(R)                                                                                                         \
    static void tally##R(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, int64_t count) {\
        switch (count) {                                                                                                 \
        case 1: tally_of(w, q, stride, pairs, sums, R, 1); break;                                                        \
        case 2: tally_of(w, q, stride, pairs, sums, R, 2); break;                                                        \
        case 3: tally_of(w, q, stride, pairs, sums, R, 3); break;                                                        \
        case 4: tally_of(w, q, stride, pairs, sums, R, 4); break;                                                        \
        case 5: tally_of(w, q, stride, pairs, sums, R, 5); break;                                                        \
        default: tally_of(w, q, stride, pairs, sums, R, 6);                                                              \
        }                                                                                                                \
    }
TALLY(1)
TALLY(2)
TALLY(4)

static void tally(const int16_t *w, const int16_t *q, int64_t stride, int64_t pairs, int32_t *sums, int64_t wide,
                  int64_t count) {
    (wide == 4 ? tally4 : wide == 2 ? tally2 : tally1)(w, q, stride, pairs, sums, count);
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
