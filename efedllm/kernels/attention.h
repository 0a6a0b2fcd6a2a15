/* Attention of steps.c, included once per instruction set with NAME and, where they are there, USE_AVX512 set. */

/* sum q[i] * k[i], q = 256 * high + low: each sum below 2^15 * 2^7 * 512 = 2^31. */
static inline double NAME(dot)(const int16_t *high, const int16_t *low, const int16_t *k, int64_t dim) {
    int32_t above = 0, below = 0;
    for (int64_t i = 0; i < dim; i++) above += (int32_t)high[i] * k[i];
    for (int64_t i = 0; i < dim; i++) below += (int32_t)low[i] * k[i];
    return (double)(256 * (int64_t)above + below);
}

static inline void NAME(split)(const int16_t *q, int64_t dim, int16_t *high, int16_t *low) {
    for (int64_t i = 0; i < dim; i++) {
        high[i] = (int16_t)((q[i] + 128) >> 8);
        low[i] = (int16_t)(q[i] - high[i] * 256);
    }
}

/* Scores z [n] -> weights, integers of at most 2^20, in their place; *unit is their scale. e has room for n
 * floats, rounded up to TILE. Returns the denominator. */
static NOINLINE double NAME(soften)(double *z, float *e, const double *value_scales, int64_t n, double *unit) {
    eight tops = NAME(load)(z, n, -INFINITY), most = {0}, sums = {0}, far = {0};
    for (int64_t j = LANES; j < n; j += LANES) tops = NAME(larger)(NAME(load)(z + j, n - j, -INFINITY), tops);
    const double top = NAME(largest_of)(tops);
    for (int64_t j = 0; j < n; j += 2 * LANES) {
        eight_floats parts[2];
        for (int k = 0; k < 2; k++)
            parts[k] = __builtin_convertvector(
                NAME(load)(z + j + LANES * k, left_of(n - j, k), -INFINITY) - top, eight_floats);
        NAME(exp2_both)(parts, parts + 1);
        memcpy(e + j, parts, sizeof parts);
        for (int k = 0; k < 2; k++) {
            const int64_t m = left_of(n - j, k);
            const eight wide = NAME(wide)(parts[k]), weight = wide * NAME(load)(value_scales + j + LANES * k, m, 0);
            NAME(store)(z + j + LANES * k, m, weight);
            /* What is beyond the row is 2^-120. */
            sums += NAME(whole)(wide * 0x1p24);
            most = NAME(larger)(weight, most);
        }
    }
    *unit = NAME(largest_of)(most) * 0x1p-20;
    const double inverse = 1 / *unit;
    for (int64_t j = 0; j < n; j += LANES) {
        const eight t = NAME(load)(z + j, n - j, 0) * inverse, whole = NAME(whole)(t);
        far = NAME(larger)(NAME(size)(t - whole), far);
        NAME(store)(z + j, n - j, whole);
    }
    if (NAME(largest_of)(far) > SURE)
        for (int64_t j = 0; j < n; j++) z[j] = rint((double)e[j] * value_scales[j] / *unit);
    return NAME(sum_of)(sums);
}

/* A few queries: each on its own, keys as they lie. */
static void NAME(attend_few)(const cached *c, const queries *q, const double *factors, int64_t factor_stride,
                             double scaling, int64_t window, double *out, char *work) {
    int64_t dim = c->dim, share = q->heads / c->kv_heads;
    double *z = (double *)work;
    float *e = (float *)(work + room(c->positions * 8));
    for (int64_t head = 0; head < q->heads; head++) {
        const int16_t *keys = c->keys + head / share * c->head_stride, *values = c->values + head / share * c->head_stride;
        const double *key_scales = c->key_scales + head / share * c->scale_stride;
        const double *value_scales = c->value_scales + head / share * c->scale_stride;
        for (int64_t row = 0; row < q->n; row++) {
            int64_t end = c->positions - q->n + row + 1, start = window > 0 && end > window ? end - window : 0;
            int16_t high[MOST_SPLIT], low[MOST_SPLIT];
            NAME(split)(q->q + row * q->stride + head * dim, dim, high, low);
            double factor = factors[row * factor_stride + head] * scaling, unit;
            for (int64_t j = start; j < end; j++)
                z[j] = NAME(dot)(high, low, keys + j * dim, dim) * key_scales[j] * factor;
            double denominator = NAME(soften)(z + start, e, value_scales + start, end - start, &unit);
            double sums[MOST_SPLIT] = {0};
            for (int64_t j = start; j < end; j++) {
                const int16_t *v = values + j * dim;
                double u = z[j];
                if (u == 0) continue;
                for (int64_t i = 0; i < dim; i++) sums[i] += u * v[i];
            }
            double *to = out + (row * q->heads + head) * dim, by = unit * 0x1p24;
            for (int64_t i = 0; i < dim; i++) to[i] = sums[i] * by / denominator;
        }
    }
}

/* Scores of BLOCK queries with TILE keys: sums above and below [BLOCK][TILE], of the queries' high and low parts
 * [BLOCK][half][2] with the keys [half][TILE][2]. */
static NOINLINE void NAME(scores)(const int16_t *keys, const int16_t *high, const int16_t *low, int64_t half,
                                int32_t (*above)[TILE], int32_t (*below)[TILE]) {
#if defined(USE_AVX512)
    __m512i a[BLOCK], b[BLOCK];
    for (int r = 0; r < BLOCK; r++) a[r] = b[r] = _mm512_setzero_si512();
    for (int64_t i = 0; i < half; i++) {
        const __m512i k = _mm512_loadu_si512(keys + i * TILE * 2);
        for (int r = 0; r < BLOCK; r++) {
            a[r] = _mm512_add_epi32(a[r], _mm512_madd_epi16(k, _mm512_set1_epi32(pair(high + (r * half + i) * 2))));
            b[r] = _mm512_add_epi32(b[r], _mm512_madd_epi16(k, _mm512_set1_epi32(pair(low + (r * half + i) * 2))));
        }
    }
    for (int r = 0; r < BLOCK; r++) {
        _mm512_storeu_si512(above[r], a[r]);
        _mm512_storeu_si512(below[r], b[r]);
    }
#elif defined(USE_AVX2)
    for (int side = 0; side < 2; side++) {
        __m256i a[BLOCK], b[BLOCK];
        for (int r = 0; r < BLOCK; r++) a[r] = b[r] = _mm256_setzero_si256();
        for (int64_t i = 0; i < half; i++) {
            const __m256i k = _mm256_loadu_si256((const __m256i *)(keys + i * TILE * 2 + 16 * side));
            for (int r = 0; r < BLOCK; r++) {
                a[r] = _mm256_add_epi32(a[r], _mm256_madd_epi16(k, _mm256_set1_epi32(pair(high + (r * half + i) * 2))));
                b[r] = _mm256_add_epi32(b[r], _mm256_madd_epi16(k, _mm256_set1_epi32(pair(low + (r * half + i) * 2))));
            }
        }
        for (int r = 0; r < BLOCK; r++) {
            _mm256_storeu_si256((__m256i *)(above[r] + 8 * side), a[r]);
            _mm256_storeu_si256((__m256i *)(below[r] + 8 * side), b[r]);
        }
    }
#else
    memset(above, 0, BLOCK * sizeof *above);
    memset(below, 0, BLOCK * sizeof *below);
    for (int64_t i = 0; i < half; i++)
        for (int r = 0; r < BLOCK; r++) {
            const int16_t *h = high + (r * half + i) * 2, *l = low + (r * half + i) * 2, *k = keys + i * TILE * 2;
            for (int j = 0; j < TILE; j++) {
                above[r][j] += (int32_t)h[0] * k[2 * j] + (int32_t)h[1] * k[2 * j + 1];
                below[r][j] += (int32_t)l[0] * k[2 * j] + (int32_t)l[1] * k[2 * j + 1];
            }
        }
#endif
}

/* sums [BLOCK][dim] of weights u [BLOCK][stride] times values [n][dim]: integers below 2^53, fused or not. */
static NOINLINE void NAME(weigh)(const double *u, int64_t stride, const int16_t *values, int64_t n, int64_t dim,
                               double *sums) {
    int64_t i = 0;
#if defined(USE_AVX512)
    enum { WIDTH = 4 };
    for (; i + 8 * WIDTH <= dim; i += 8 * WIDTH) {
        __m512d s[BLOCK][WIDTH];
        for (int r = 0; r < BLOCK; r++)
            for (int k = 0; k < WIDTH; k++) s[r][k] = _mm512_setzero_pd();
        for (int64_t j = 0; j < n; j++) {
            __m512d v[WIDTH];
            for (int k = 0; k < WIDTH; k++)
                v[k] = _mm512_cvtepi32_pd(
                    _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)(values + j * dim + i + 8 * k))));
            for (int r = 0; r < BLOCK; r++) {
                const __m512d w = _mm512_set1_pd(u[r * stride + j]);
                for (int k = 0; k < WIDTH; k++) s[r][k] = _mm512_fmadd_pd(w, v[k], s[r][k]);
            }
        }
        for (int r = 0; r < BLOCK; r++)
            for (int k = 0; k < WIDTH; k++) _mm512_storeu_pd(sums + r * dim + i + 8 * k, s[r][k]);
    }
#elif defined(USE_AVX2)
    enum { WIDTH = 2 };
    for (; i + 4 * WIDTH <= dim; i += 4 * WIDTH) {
        __m256d s[BLOCK][WIDTH];
        for (int r = 0; r < BLOCK; r++)
            for (int k = 0; k < WIDTH; k++) s[r][k] = _mm256_setzero_pd();
        for (int64_t j = 0; j < n; j++) {
            __m256d v[WIDTH];
            for (int k = 0; k < WIDTH; k++)
                v[k] = _mm256_cvtepi32_pd(
                    _mm_cvtepi16_epi32(_mm_loadl_epi64((const __m128i *)(values + j * dim + i + 4 * k))));
            for (int r = 0; r < BLOCK; r++) {
                const __m256d w = _mm256_set1_pd(u[r * stride + j]);
                for (int k = 0; k < WIDTH; k++) s[r][k] = _mm256_fmadd_pd(w, v[k], s[r][k]);
            }
        }
        for (int r = 0; r < BLOCK; r++)
            for (int k = 0; k < WIDTH; k++) _mm256_storeu_pd(sums + r * dim + i + 4 * k, s[r][k]);
    }
#endif
    if (i == dim) return;
    for (int r = 0; r < BLOCK; r++) {
        double *to = sums + r * dim;
        memset(to + i, 0, (size_t)(dim - i) * sizeof *to);
        for (int64_t j = 0; j < n; j++) {
            const double w = u[r * stride + j];
            if (w == 0) continue;
            for (int64_t k = i; k < dim; k++) to[k] += w * values[j * dim + k];
        }
    }
}

/* Many queries: BLOCK of them at a time share keys that are arranged for it, and values. */
static void NAME(attend_many)(const cached *c, const queries *q, const double *factors, int64_t factor_stride,
                              double scaling, int64_t window, double *out, char *work) {
    const int64_t dim = c->dim, share = q->heads / c->kv_heads, half = (dim + 1) / 2, before = c->positions - q->n;
    const int64_t first = window > 0 && before + 1 > window ? before + 1 - window : 0, seen = c->positions - first;
    const int64_t stride = up_to(seen, TILE);
    int16_t *pairs = (int16_t *)work;
    double *z = (double *)(work + room(stride * half * 4)), sums[BLOCK * MOST_SPLIT], units[BLOCK], under[BLOCK];
    float *e = (float *)(z + BLOCK * stride);
    int16_t high[BLOCK * (MOST_SPLIT + 1)], low[BLOCK * (MOST_SPLIT + 1)];
    int32_t above[BLOCK][TILE], below[BLOCK][TILE];
    for (int64_t kv = 0; kv < c->kv_heads; kv++) {
        const int16_t *keys = c->keys + kv * c->head_stride + first * dim;
        const int16_t *values = c->values + kv * c->head_stride + first * dim;
        const double *key_scales = c->key_scales + kv * c->scale_stride + first;
        const double *value_scales = c->value_scales + kv * c->scale_stride + first;
        memset(pairs + (stride - TILE) * half * 2, 0, (size_t)(TILE * half) * 4);
        for (int64_t j = 0; j < seen; j++) {
            int16_t *to = pairs + (j / TILE * half * TILE + j % TILE) * 2;
            for (int64_t i = 0; i < dim / 2; i++) memcpy(to + i * TILE * 2, keys + j * dim + 2 * i, 4);
            if (dim % 2) {
                to[dim / 2 * TILE * 2] = keys[j * dim + dim - 1];
                to[dim / 2 * TILE * 2 + 1] = 0;
            }
        }
        for (int64_t head = kv * share; head < (kv + 1) * share; head++)
            for (int64_t row = 0; row < q->n; row += BLOCK) {
                /* A block beyond the last query repeats it. */
                int64_t rows = q->n - row < BLOCK ? q->n - row : BLOCK;
                int64_t begin = before + row + 1 - first, end = begin + rows - 1;
                int64_t start = window > 0 && begin > window ? begin - window : 0;
                for (int64_t r = 0; r < BLOCK; r++) {
                    int64_t at = row + (r < rows ? r : rows - 1);
                    NAME(split)(q->q + at * q->stride + head * dim, dim, high + r * half * 2, low + r * half * 2);
                    if (dim % 2) high[r * half * 2 + dim] = low[r * half * 2 + dim] = 0;
                    under[r] = factors[at * factor_stride + head] * scaling;
                }
                for (int64_t tile = start / TILE; tile * TILE < end; tile++) {
                    NAME(scores)(pairs + tile * half * TILE * 2, high, low, half, above, below);
                    for (int64_t r = 0; r < rows; r++) {
                        double *to = z + r * stride + tile * TILE;
                        for (int64_t j = 0; j < TILE; j += LANES) {
                            const int64_t m = seen - tile * TILE - j;
                            if (m <= 0) break;
                            eight_words upper, lower;
                            memcpy(&upper, above[r] + j, sizeof upper);
                            memcpy(&lower, below[r] + j, sizeof lower);
                            const eight sum = __builtin_convertvector(upper, eight) * 256 + __builtin_convertvector(lower, eight);
                            NAME(store)(to + j, m, sum * NAME(load)(key_scales + tile * TILE + j, m, 0) * under[r]);
                        }
                    }
                }
                for (int64_t r = 0; r < BLOCK; r++) {
                    double *u = z + r * stride;
                    if (r >= rows) {
                        memset(u + start, 0, (size_t)(end - start) * sizeof *u);
                        continue;
                    }
                    int64_t stop = begin + r, from = window > 0 && stop > window ? stop - window : 0;
                    under[r] = NAME(soften)(u + from, e, value_scales + from, stop - from, units + r);
                    memset(u + start, 0, (size_t)(from - start) * sizeof *u);
                    memset(u + stop, 0, (size_t)(end - stop) * sizeof *u);
                }
                NAME(weigh)(z + start, stride, values + start * dim, end - start, dim, sums);
                for (int64_t r = 0; r < rows; r++) {
                    double *to = out + ((row + r) * q->heads + head) * dim, by = units[r] * 0x1p24;
                    for (int64_t i = 0; i < dim; i++) to[i] = sums[r * dim + i] * by / under[r];
                }
            }
    }
}

static void NAME(attend)(const cached *c, const queries *q, const double *factors, int64_t factor_stride, double scaling,
                         int64_t window, double *out, char *work) {
    (q->n < FEW ? NAME(attend_few) : NAME(attend_many))(c, q, factors, factor_stride, scaling, window, out, work);
}
