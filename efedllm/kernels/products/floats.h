/* ---- float32: sums[t][row * 4 + column % 4] ---- */
#ifndef EFL_FLOATS_H
#define EFL_FLOATS_H

#include "layout.h"
#include "unpack.h"

#if defined(USE_VNNI)
static inline __attribute__((always_inline)) void fsum(const uint8_t *w, int64_t tiles, const float *x,
        int64_t stride, float (*sums)[TILE], const int T) {
    __m512 s[4][4];
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j++) s[t][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < tiles; k++) {
        __m512 quad[4];
        fetch_line(w + k * TILE + AHEAD);
        for (int t = 0; t < T; t++) quad[t] = _mm512_broadcast_f32x4(_mm_loadu_ps(x + t * stride + 4 * k));
        for (int j = 0; j < 4; j++) {
            const __m128i packed = _mm_loadu_si128((const __m128i *)(w + k * TILE + 16 * j));
            const __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(packed));
            for (int t = 0; t < T; t++) s[t][j] = _mm512_fmadd_ps(v, quad[t], s[t][j]);
        }
    }
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j++) _mm512_storeu_ps(sums[t] + 16 * j, s[t][j]);
}

static inline void spread(const int8_t *mult, float *each) {
    const __m512 m = _mm512_cvtepi32_ps(multipliers(mult));
    const __m512i row = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    for (int j = 0; j < 4; j++)
        _mm512_storeu_ps(each + 16 * j, _mm512_permutexvar_ps(_mm512_add_epi32(row, _mm512_set1_epi32(4 * j)), m));
}
#else
static inline void fsum(const uint8_t *w, int64_t tiles, const float *x, int64_t stride, float (*sums)[TILE],
        const int T) {
    (void)T, (void)stride;
#if defined(USE_AVX2)
    __m256 s[8];
    for (int j = 0; j < 8; j++) s[j] = _mm256_setzero_ps();
    for (int64_t k = 0; k < tiles; k++) {
        fetch_line(w + k * TILE + AHEAD);
        const __m256 quad = _mm256_broadcast_ps((const __m128 *)(x + 4 * k));
        for (int j = 0; j < 8; j++) {
            const __m128i packed = _mm_loadl_epi64((const __m128i *)(w + k * TILE + 8 * j));
            s[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(packed)), quad, s[j]);
        }
    }
    for (int j = 0; j < 8; j++) _mm256_storeu_ps(sums[0] + 8 * j, s[j]);
#elif defined(USE_NEON)
    float32x4_t s[ROWS];
    for (int r = 0; r < ROWS; r++) s[r] = vdupq_n_f32(0);
    for (int64_t k = 0; k < tiles; k++) {
        const float32x4_t quad = vld1q_f32(x + 4 * k);
        for (int r = 0; r < ROWS; r += 2) {
            const int16x8_t v = vmovl_s8(vld1_s8((const int8_t *)w + k * TILE + 4 * r));
            s[r] = vfmaq_f32(s[r], vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), quad);
            s[r + 1] = vfmaq_f32(s[r + 1], vcvtq_f32_s32(vmovl_s16(vget_high_s16(v))), quad);
        }
    }
    for (int r = 0; r < ROWS; r++) vst1q_f32(sums[0] + 4 * r, s[r]);
#else
    memset(sums, 0, sizeof *sums);
    for (int64_t k = 0; k < tiles; k++, x += 4)
        for (int r = 0; r < ROWS; r++) {
            const int8_t *v = (const int8_t *)w + k * TILE + 4 * r;
            for (int i = 0; i < 4; i++) sums[0][4 * r + i] += (float)v[i] * x[i];
        }
#endif
}

static inline void spread(const int8_t *mult, float *each) {
    for (int i = 0; i < TILE; i++) each[i] = (float)mult[i / 4];
}
#endif

#if defined(USE_VNNI)
/* Four bits: the nibbles of lane r of a vector are row r's, and choose from a table of floats, so that nothing is unpacked
 * or converted. totals[t] += multiplier * sum of (value * activation), for T tokens. */
INLINE void nibble_sums(const uint8_t *w, const int8_t *mult, const layout *l, const float *x, __m512 *totals, const int T) {
    const int U = T == 1 ? 8 : T == 2 ? 4 : 2;
    const __m512 table = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    __m512 s[4][8];
    for (int64_t g = 0; g < l->groups; g++, mult += mult ? ROWS : 0) {
        const int64_t wide = g + 1 < l->groups ? l->padded : l->last;
        for (int t = 0; t < T; t++)
            for (int u = 0; u < U; u++) s[t][u] = _mm512_setzero_ps();
        for (int64_t k = 0; k < wide; k += UNIT, w += ROWS * UNIT / 2, x += UNIT)
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const __m512i two = _mm512_loadu_si512(w + j * TILE);
                fetch_line(w + j * TILE + AHEAD);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    /* Low nibbles are of tile j, high ones of tile j + 4. */
                    const int column = 4 * (i % 2 ? j + 4 : j) + i / 2;
                    const __m512 v = _mm512_permutexvar_ps(_mm512_srli_epi32(two, 4 * i), table);
#pragma GCC unroll 4
                    for (int t = 0; t < T; t++)
                        s[t][i % U] = _mm512_fmadd_ps(v, _mm512_set1_ps(x[t * l->cols + column]), s[t][i % U]);
                }
            }
        const __m512 by = mult ? _mm512_cvtepi32_ps(multipliers(mult)) : _mm512_set1_ps(1);
        for (int t = 0; t < T; t++) {
            for (int u = U / 2; u >= 1; u /= 2)
                for (int i = 0; i < u; i++) s[t][i] = _mm512_add_ps(s[t][i], s[t][i + u]);
            totals[t] = _mm512_fmadd_ps(by, s[t][0], totals[t]);
        }
    }
}

static void nibble_floats(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    const layout l = a->shape;
    for (int64_t p = first; p < last; p++) {
        const uint8_t *w = m->tiles + p * panel_bytes(m);
        const int8_t *mult = m->mult ? m->mult + p * l.groups * ROWS : NULL;
        const __mmask16 rows = m->rows - p * ROWS >= ROWS ? UINT16_MAX : (__mmask16)((1u << (m->rows - p * ROWS)) - 1);
        for (int64_t from = 0, count; from < a->tokens; from += count) {
            const float *x = a->x + from * l.cols;
            __m512 totals[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
            count = least(a->tokens - from, 4);
            switch (count) {
            case 1: nibble_sums(w, mult, &l, x, totals, 1); break;
            case 2: nibble_sums(w, mult, &l, x, totals, 2); break;
            case 3: nibble_sums(w, mult, &l, x, totals, 3); break;
            default: nibble_sums(w, mult, &l, x, totals, 4);
            }
            for (int64_t t = 0; t < count; t++) {
                float *y = to->floats + (from + t) * to->stride + p * ROWS;
                __m512 value = totals[t];
                if (m->scale) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(rows, m->scale + p * ROWS));
                if (to->add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(rows, y), value);
                _mm512_mask_storeu_ps(y, rows, value);
            }
        }
    }
}
#endif

/* As `exact`, in float32. */
static void floats(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    const layout l = a->shape;
#if defined(USE_VNNI)
    if (m->bits == 4) {
        nibble_floats(m, a, to, first, last);
        return;
    }
#endif
    const int64_t n = a->tokens, size = panel_bytes(m);
    uint8_t buffer[ROWS * SEGMENT] __attribute__((aligned(64)));
    float totals[TOKENS][TILE] __attribute__((aligned(64))), each[TILE], sums[4][TILE] __attribute__((aligned(64)));
    for (int i = 0; i < TILE; i++) each[i] = 1;
    for (int64_t p = first; p < last; p++) {
        const uint8_t *panel = m->tiles + p * size;
        memset(totals, 0, (size_t)n * sizeof totals[0]);
        for (int64_t g = 0; g < l.groups; g++) {
            const int64_t wide = g + 1 < l.groups ? l.padded : l.last;
            if (m->mult) spread(m->mult + (p * l.groups + g) * ROWS, each);
            for (int64_t start = 0; start < wide; start += SEGMENT) {
                const int64_t columns = wide - start < SEGMENT ? wide - start : SEGMENT, at = g * l.padded + start;
                const uint8_t *w = panel + at * ROWS * m->bits / 8;
                if (m->bits != 8) {
                    unpack(w, m->bits, columns / UNIT, buffer);
                    w = buffer;
                }
                const int step = STEP == 4 ? 4 : 1;
                for (int64_t t = 0; t < n; t += step) {
                    const int64_t count = n - t < step ? n - t : step;
                    const float *x = a->x + t * l.cols + at;
                    switch (count) {
                    case 1: fsum(w, columns / 4, x, l.cols, sums, 1); break;
#if defined(USE_VNNI)
                    case 2: fsum(w, columns / 4, x, l.cols, sums, 2); break;
                    case 3: fsum(w, columns / 4, x, l.cols, sums, 3); break;
                    default: fsum(w, columns / 4, x, l.cols, sums, 4);
#endif
                    }
                    for (int64_t i = 0; i < count; i++)
                        for (int k = 0; k < TILE; k++) totals[t + i][k] += each[k] * sums[i][k];
                }
            }
        }
        const int64_t rows = m->rows - p * ROWS < ROWS ? m->rows - p * ROWS : ROWS;
        for (int64_t t = 0; t < n; t++) {
            float *y = to->floats + t * to->stride + p * ROWS;
            for (int64_t r = 0; r < rows; r++) {
                const float *s = totals[t] + 4 * r;
                float value = (s[0] + s[1]) + (s[2] + s[3]);
                if (m->scale) value *= m->scale[p * ROWS + r];
                y[r] = to->add ? y[r] + value : value;
            }
        }
    }
}

/* Rows of panels [first, last) as float32 [rows][cols]: (value * multiplier) * scale. */
static void expand(const matrix *m, int64_t first, int64_t last, float *out) {
    const layout l = layout_of(m);
    uint8_t buffer[ROWS * SEGMENT] __attribute__((aligned(64)));
    float factor[ROWS], scale[ROWS];
    for (int64_t p = first; p < last; p++, out += ROWS * m->cols) {
        const int64_t rows = m->rows - p * ROWS < ROWS ? m->rows - p * ROWS : ROWS;
        for (int64_t r = 0; r < rows; r++) scale[r] = m->scale ? m->scale[p * ROWS + r] : 1;
        for (int64_t g = 0; g < l.groups; g++) {
            const int64_t wide = g + 1 < l.groups ? l.padded : l.last;
            const int64_t end = (g + 1) * l.group < m->cols ? (g + 1) * l.group : m->cols;
            for (int r = 0; r < ROWS; r++) factor[r] = m->mult ? m->mult[(p * l.groups + g) * ROWS + r] : 1;
            for (int64_t start = 0; start < wide; start += SEGMENT) {
                const int64_t columns = wide - start < SEGMENT ? wide - start : SEGMENT, at = g * l.padded + start;
                const uint8_t *w = m->tiles + p * panel_bytes(m) + at * ROWS * m->bits / 8;
                if (m->bits != 8) {
                    unpack(w, m->bits, columns / UNIT, buffer);
                    w = buffer;
                }
                const int64_t column = g * l.group + start, real = end - column < columns ? end - column : columns;
                /* Row by row: lines of several rows, a power of two apart, would push each other out of the cache. */
                for (int64_t r = 0; r < rows; r++) {
                    float *to = out + r * m->cols + column;
                    const float by = factor[r], times = scale[r];
                    int64_t k = 0;
                    for (; k + 4 <= real; k += 4) {
#if defined(USE_VNNI) || defined(USE_AVX2)
                        const __m128 v = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(load4(w + k * ROWS + 4 * r))));
                        _mm_storeu_ps(to + k, _mm_mul_ps(_mm_mul_ps(v, _mm_set1_ps(by)), _mm_set1_ps(times)));
#else
                        for (int i = 0; i < 4; i++) to[k + i] = (float)(int8_t)w[k * ROWS + 4 * r + i] * by * times;
#endif
                    }
                    for (; k < real; k++)
                        to[k] = (float)(int8_t)w[k / 4 * TILE + 4 * r + k % 4] * by * times;
                }
            }
        }
    }
}

#endif
