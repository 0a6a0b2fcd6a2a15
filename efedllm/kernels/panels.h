/* The loops over panels, included once per instruction set with VARIANT and USE_* set. See products.c for the layout. */

static inline void NAME(plane4)(const words *p, words *t) {
    for (int j = 0; j < 4; j++) {
        t[j] = p[j] & 0x0f0f0f0fu;
        t[j + 4] = p[j] >> 4 & 0x0f0f0f0fu;
    }
}

static inline void NAME(plane2)(const words *p, words *t, int shift) {
    for (int j = 0; j < 2; j++)
        for (int k = 0; k < 4; k++) t[j + 2 * k] |= (p[j] >> 2 * k & 0x03030303u) << shift;
}

static inline void NAME(plane1)(const words *p, words *t, int shift) {
    for (int k = 0; k < 8; k++) t[k] |= (p[0] >> k & 0x01010101u) << shift;
}

/* Units of 8 tiles: v + 2^(bits-1) as bytes, or v itself as int8 where `sign`. */
static inline void NAME(unpack)(const uint8_t *from, int64_t bits, int64_t units, uint8_t *to, int sign) {
    for (int64_t i = 0; i < units; i++, from += 8 * 8 * bits, to += 8 * TILE) {
        const words *p = (const words *)from;
        words t[8] = {0};
        for (int64_t k = 0; k < bits; k++) __builtin_prefetch(from + k * TILE + AHEAD);
        switch (bits) {
        case 2: NAME(plane2)(p, t, 0); break;
        case 3: NAME(plane2)(p, t, 0), NAME(plane1)(p + 2, t, 2); break;
        case 4: NAME(plane4)(p, t); break;
        case 5: NAME(plane4)(p, t), NAME(plane1)(p + 4, t, 4); break;
        default: NAME(plane4)(p, t), NAME(plane2)(p + 4, t, 4);
        }
        const uint8_t less = (uint8_t)(sign ? 1 << (bits - 1) : 0);
        for (int k = 0; k < 8; k++) ((bytes *)to)[k] = (bytes)t[k] - less;
    }
}

/* ---- sums[t][row] = sum over the tiles of value * activation, for STEP or fewer tokens ---- */

#if defined(USE_VNNI)
enum { NAME(STEP) = 4, NAME(BIASED) = 1 };
#define UNROLL(T) ((T) == 1 ? 4 : (T) == 4 ? 1 : 2)

static inline __attribute__((always_inline)) void NAME(sum)(const uint8_t *w, int64_t tiles, int64_t bits,
        const activations *a, int64_t token, int64_t at, int32_t (*sums)[ROWS], const int T, const int U) {
    const __m512i flip = _mm512_set1_epi8(bits == 8 ? -128 : 0);
    const int8_t *high = a->high + token * a->shape.cols + at, *low = a->low + token * a->shape.cols + at;
    __m512i h[4][4], l[4][4];
    for (int t = 0; t < T; t++)
        for (int u = 0; u < U; u++) h[t][u] = l[t][u] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + U <= tiles; k += U)
        for (int u = 0; u < U; u++) {
            const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + (k + u) * TILE), flip);
            __builtin_prefetch(w + (k + u) * TILE + AHEAD);
            for (int t = 0; t < T; t++) {
                h[t][u] = _mm512_dpbusd_epi32(h[t][u], v, _mm512_set1_epi32(load4(high + t * a->shape.cols + 4 * (k + u))));
                l[t][u] = _mm512_dpbusd_epi32(l[t][u], v, _mm512_set1_epi32(load4(low + t * a->shape.cols + 4 * (k + u))));
            }
        }
    for (; k < tiles; k++) {
        const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(w + k * TILE), flip);
        for (int t = 0; t < T; t++) {
            h[t][0] = _mm512_dpbusd_epi32(h[t][0], v, _mm512_set1_epi32(load4(high + t * a->shape.cols + 4 * k)));
            l[t][0] = _mm512_dpbusd_epi32(l[t][0], v, _mm512_set1_epi32(load4(low + t * a->shape.cols + 4 * k)));
        }
    }
    for (int t = 0; t < T; t++) {
        for (int u = 1; u < U; u++) {
            h[t][0] = _mm512_add_epi32(h[t][0], h[t][u]);
            l[t][0] = _mm512_add_epi32(l[t][0], l[t][u]);
        }
        _mm512_storeu_si512(sums[t], _mm512_add_epi32(_mm512_slli_epi32(h[t][0], 8), l[t][0]));
    }
}
#elif defined(USE_AVX2)
enum { NAME(STEP) = 2, NAME(BIASED) = 0 };
#define UNROLL(T) 1

static inline __attribute__((always_inline)) void NAME(sum)(const uint8_t *w, int64_t tiles, int64_t bits,
        const activations *a, int64_t token, int64_t at, int32_t (*sums)[ROWS], const int T, const int U) {
    const int16_t *q = a->q + token * a->shape.cols + at;
    __m256i s[2][4];
    (void)bits, (void)U;
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j++) s[t][j] = _mm256_setzero_si256();
    for (int64_t k = 0; k < tiles; k++) {
        __builtin_prefetch(w + k * TILE + AHEAD);
        for (int j = 0; j < 4; j++) {
            /* Four rows of four columns; madd leaves two sums of a row side by side. */
            const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + k * TILE + 16 * j)));
            for (int t = 0; t < T; t++)
                s[t][j] = _mm256_add_epi32(
                    s[t][j], _mm256_madd_epi16(v, _mm256_set1_epi64x(load8(q + t * a->shape.cols + 4 * k))));
        }
    }
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j += 2) {
            const __m256i pair = _mm256_hadd_epi32(s[t][j], s[t][j + 1]);
            _mm256_storeu_si256((__m256i *)(sums[t] + 4 * j), _mm256_permute4x64_epi64(pair, 0xd8));
        }
}
#elif defined(USE_NEON)
enum { NAME(STEP) = 1, NAME(BIASED) = 0 };
#define UNROLL(T) 1

static inline void NAME(sum)(const uint8_t *w, int64_t tiles, int64_t bits, const activations *a, int64_t token,
        int64_t at, int32_t (*sums)[ROWS], const int T, const int U) {
    const int16_t *q = a->q + token * a->shape.cols + at;
    int32x4_t s[ROWS];
    (void)bits, (void)T, (void)U;
    for (int r = 0; r < ROWS; r++) s[r] = vdupq_n_s32(0);
    for (int64_t k = 0; k < tiles; k++) {
        const int16x4_t four = vld1_s16(q + 4 * k);
        for (int r = 0; r < ROWS; r += 2) {
            const int16x8_t v = vmovl_s8(vld1_s8((const int8_t *)w + k * TILE + 4 * r));
            s[r] = vmlal_s16(s[r], vget_low_s16(v), four);
            s[r + 1] = vmlal_s16(s[r + 1], vget_high_s16(v), four);
        }
    }
    for (int r = 0; r < ROWS; r++) sums[0][r] = vaddvq_s32(s[r]);
}
#else
enum { NAME(STEP) = 1, NAME(BIASED) = 0 };
#define UNROLL(T) 1

static inline void NAME(sum)(const uint8_t *w, int64_t tiles, int64_t bits, const activations *a, int64_t token,
        int64_t at, int32_t (*sums)[ROWS], const int T, const int U) {
    const int16_t *q = a->q + token * a->shape.cols + at;
    (void)bits, (void)T, (void)U;
    memset(sums, 0, sizeof *sums);
    for (int64_t k = 0; k < tiles; k++, q += 4)
        for (int r = 0; r < ROWS; r++) {
            const int8_t *v = (const int8_t *)w + k * TILE + 4 * r;
            sums[0][r] += v[0] * q[0] + v[1] * q[1] + v[2] * q[2] + v[3] * q[3];
        }
}
#endif

/* Rows of panels [first, last) for all tokens of `a`: (integer sum * token scale) * row scale. */
static void NAME(exact)(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    const layout l = a->shape;
    const int64_t n = a->tokens, size = panel_bytes(m);
    const int32_t bias = !NAME(BIASED) ? 0 : 1 << (m->bits - 1);
    uint8_t buffer[ROWS * SEGMENT] __attribute__((aligned(64)));
    int64_t totals[TOKENS][ROWS] __attribute__((aligned(64)));
    int32_t sums[4][ROWS] __attribute__((aligned(64)));
    for (int64_t p = first; p < last; p++) {
        const uint8_t *panel = m->tiles + p * size;
        memset(totals, 0, (size_t)n * sizeof totals[0]);
        int64_t segment = 0;
        for (int64_t g = 0; g < l.groups; g++) {
            const int64_t wide = g + 1 < l.groups ? l.padded : l.last;
            int32_t mult[ROWS];
            for (int r = 0; r < ROWS; r++) mult[r] = m->mult ? m->mult[(p * l.groups + g) * ROWS + r] : 1;
            for (int64_t start = 0; start < wide; start += SEGMENT, segment++) {
                const int64_t columns = wide - start < SEGMENT ? wide - start : SEGMENT, at = g * l.padded + start;
                const uint8_t *w = panel + at * ROWS * m->bits / 8;
                if (m->bits != 8) {
                    NAME(unpack)(w, m->bits, columns / 32, buffer, !NAME(BIASED));
                    w = buffer;
                }
                for (int64_t t = 0; t < n; t += NAME(STEP)) {
                    const int64_t count = n - t < NAME(STEP) ? n - t : NAME(STEP);
                    switch (count) {
                    case 1: NAME(sum)(w, columns / 4, m->bits, a, t, at, sums, 1, UNROLL(1)); break;
                    case 2: NAME(sum)(w, columns / 4, m->bits, a, t, at, sums, 2, UNROLL(2)); break;
#if defined(USE_VNNI)
                    case 3: NAME(sum)(w, columns / 4, m->bits, a, t, at, sums, 3, UNROLL(3)); break;
                    default: NAME(sum)(w, columns / 4, m->bits, a, t, at, sums, 4, UNROLL(4));
#endif
                    }
                    for (int64_t i = 0; i < count; i++) {
                        const int32_t offset = bias * a->sums[segment * n + t + i];
                        for (int r = 0; r < ROWS; r++)
                            totals[t + i][r] += (int64_t)mult[r] * (int64_t)(sums[i][r] - offset);
                    }
                }
            }
        }
        const int64_t rows = m->rows - p * ROWS < ROWS ? m->rows - p * ROWS : ROWS;
        for (int64_t t = 0; t < n; t++) {
            double *y = to->exact + t * to->stride + p * ROWS;
            for (int64_t r = 0; r < rows; r++) {
                double value = (double)totals[t][r] * a->scale[t];
                if (m->scale) value *= (double)m->scale[p * ROWS + r];
                y[r] = to->add ? y[r] + value : value;
            }
        }
    }
}

/* ---- float32: sums[t][row * 4 + column % 4] ---- */

#if defined(USE_VNNI)
static inline __attribute__((always_inline)) void NAME(fsum)(const uint8_t *w, int64_t tiles, const float *x,
        int64_t stride, float (*sums)[TILE], const int T) {
    __m512 s[4][4];
    for (int t = 0; t < T; t++)
        for (int j = 0; j < 4; j++) s[t][j] = _mm512_setzero_ps();
    for (int64_t k = 0; k < tiles; k++) {
        __m512 quad[4];
        __builtin_prefetch(w + k * TILE + AHEAD);
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

static inline void NAME(spread)(const int8_t *mult, float *each) {
    const __m512 m = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)mult)));
    const __m512i row = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    for (int j = 0; j < 4; j++)
        _mm512_storeu_ps(each + 16 * j, _mm512_permutexvar_ps(_mm512_add_epi32(row, _mm512_set1_epi32(4 * j)), m));
}
#else
static inline void NAME(fsum)(const uint8_t *w, int64_t tiles, const float *x, int64_t stride, float (*sums)[TILE],
        const int T) {
    (void)T, (void)stride;
#if defined(USE_AVX2)
    __m256 s[8];
    for (int j = 0; j < 8; j++) s[j] = _mm256_setzero_ps();
    for (int64_t k = 0; k < tiles; k++) {
        __builtin_prefetch(w + k * TILE + AHEAD);
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

static inline void NAME(spread)(const int8_t *mult, float *each) {
    for (int i = 0; i < TILE; i++) each[i] = (float)mult[i / 4];
}
#endif

/* As `exact`, in float32. */
static void NAME(floats)(const matrix *m, const activations *a, const target *to, int64_t first, int64_t last) {
    const layout l = a->shape;
    const int64_t n = a->tokens, size = panel_bytes(m);
    uint8_t buffer[ROWS * SEGMENT] __attribute__((aligned(64)));
    float totals[TOKENS][TILE] __attribute__((aligned(64))), each[TILE], sums[4][TILE] __attribute__((aligned(64)));
    for (int i = 0; i < TILE; i++) each[i] = 1;
    for (int64_t p = first; p < last; p++) {
        const uint8_t *panel = m->tiles + p * size;
        memset(totals, 0, (size_t)n * sizeof totals[0]);
        for (int64_t g = 0; g < l.groups; g++) {
            const int64_t wide = g + 1 < l.groups ? l.padded : l.last;
            if (m->mult) NAME(spread)(m->mult + (p * l.groups + g) * ROWS, each);
            for (int64_t start = 0; start < wide; start += SEGMENT) {
                const int64_t columns = wide - start < SEGMENT ? wide - start : SEGMENT, at = g * l.padded + start;
                const uint8_t *w = panel + at * ROWS * m->bits / 8;
                if (m->bits != 8) {
                    NAME(unpack)(w, m->bits, columns / 32, buffer, 1);
                    w = buffer;
                }
                const int step = NAME(STEP) == 4 ? 4 : 1;
                for (int64_t t = 0; t < n; t += step) {
                    const int64_t count = n - t < step ? n - t : step;
                    const float *x = a->x + t * l.cols + at;
                    switch (count) {
                    case 1: NAME(fsum)(w, columns / 4, x, l.cols, sums, 1); break;
#if defined(USE_VNNI)
                    case 2: NAME(fsum)(w, columns / 4, x, l.cols, sums, 2); break;
                    case 3: NAME(fsum)(w, columns / 4, x, l.cols, sums, 3); break;
                    default: NAME(fsum)(w, columns / 4, x, l.cols, sums, 4);
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
static void NAME(expand)(const matrix *m, int64_t first, int64_t last, float *out) {
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
                    NAME(unpack)(w, m->bits, columns / 32, buffer, 1);
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

/* q = rint(x / s) with s = max(max|x| / Q_MAX, 2^-400). A token with NaN or infinity gets the scale NaN. */
static void NAME(quantize)(const double *x, int64_t n, int16_t *q, double *scale) {
    double most[8] = {0}, poison[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) {
            const double size = fabs(x[i + j]);
            most[j] = size > most[j] ? size : most[j];
            poison[j] += x[i + j] * 0.0;
        }
    for (; i < n; i++) {
        const double size = fabs(x[i]);
        most[0] = size > most[0] ? size : most[0];
        poison[0] += x[i] * 0.0;
    }
    for (int j = 1; j < 8; j++) {
        most[0] = most[j] > most[0] ? most[j] : most[0];
        poison[0] += poison[j];
    }
    double s = most[0] / Q_MAX;
    s = s < 0x1p-400 ? 0x1p-400 : s;
    if (poison[0] != 0.0) {
        *scale = poison[0];
        memset(q, 0, (size_t)n * sizeof *q);
        return;
    }
    *scale = s;
    for (i = 0; i < n; i++) q[i] = (int16_t)(int32_t)rint(x[i] / s);
}

/* Fills `a` with the integers q [tokens][m->cols] in the layout of `m`, and with their sums; `space` holds them. */
static void NAME(arrange)(const matrix *m, const int16_t *q, activations *a, char *space) {
    const layout l = layout_of(m);
    const int64_t n = a->tokens;
    int16_t *whole = (int16_t *)space;
    int8_t *high = (int8_t *)space, *low = high + n * l.cols;
    int32_t *sums = (int32_t *)(space + room(TOKENS * l.cols * 4));
    a->shape = l, a->q = whole, a->high = high, a->low = low, a->sums = sums;
    int64_t segment = 0;
    for (int64_t g = 0; g < l.groups; g++) {
        const int64_t wide = g + 1 < l.groups ? l.padded : l.last;
        const int64_t end = (g + 1) * l.group < m->cols ? (g + 1) * l.group : m->cols;
        for (int64_t start = 0; start < wide; start += SEGMENT, segment++) {
            const int64_t size = wide - start < SEGMENT ? wide - start : SEGMENT, column = g * l.group + start;
            const int64_t real = end - column < size ? end - column : size;
            for (int64_t t = 0; t < n; t++) {
                const int64_t at = t * l.cols + g * l.padded + start;
                int16_t part[SEGMENT];
                memcpy(part, q + t * m->cols + column, (size_t)real * 2);
                memset(part + real, 0, (size_t)(size - real) * 2);
                int32_t sum = 0;
                for (int64_t k = 0; k < size; k++) sum += part[k];
                sums[segment * n + t] = sum;
                if (!NAME(BIASED)) {
                    memcpy(whole + at, part, (size_t)size * 2);
                    continue;
                }
                for (int64_t k = 0; k < size; k++) {
                    const int32_t upper = (part[k] + 128) >> 8;
                    high[at + k] = (int8_t)upper;
                    low[at + k] = (int8_t)(part[k] - upper * 256);
                }
            }
        }
    }
}

#undef UNROLL
