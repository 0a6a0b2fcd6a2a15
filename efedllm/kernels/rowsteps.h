/* Norms, heads and activations of steps.c, included once per instruction set with NAME set. What calls itself vector code
 * here is made for that set: helpers outside would have been split into the narrowest vectors before they are inlined. */

/* The first m numbers of x, then `fill`. */
static inline eight NAME(load)(const double *x, int64_t m, double fill) {
    eight v;
    if (m >= LANES) {
        memcpy(&v, x, sizeof v);
        return v;
    }
#if defined(USE_AVX512)
    return (eight)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)((1 << m) - 1), x);
#else
    for (int l = 0; l < LANES; l++) v[l] = l < m ? x[l] : fill;
    return v;
#endif
}

static inline void NAME(store)(double *x, int64_t m, eight v) {
    if (m >= LANES) {
        memcpy(x, &v, sizeof v);
        return;
    }
#if defined(USE_AVX512)
    _mm512_mask_storeu_pd(x, (__mmask8)((1 << m) - 1), (__m512d)v);
#else
    for (int l = 0; l < m; l++) x[l] = v[l];
#endif
}

static inline eight NAME(size)(eight x) { return (eight)((bits8)x & INT64_MAX); }

/* a where it is larger, else b. */
static inline eight NAME(larger)(eight a, eight b) {
    const bits8 is = a > b;
    return (eight)(((bits8)a & is) | ((bits8)b & ~is));
}

/* rint(x) for |x| <= 2^51, but for the sign of a zero. */
static inline eight NAME(whole)(eight x) { return (x + 0x1.8p52) - 0x1.8p52; }

static inline double NAME(largest_of)(eight x) {
    double most = x[0];
    for (int l = 1; l < LANES; l++) most = x[l] > most ? x[l] : most;
    return most;
}

static inline double NAME(sum_of)(eight x) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

static inline eight NAME(wide)(eight_floats x) {
#if defined(USE_AVX512)
    return (eight)_mm512_cvtps_pd((__m256)x);
#else
    return __builtin_convertvector(x, eight);
#endif
}

/* 2^z for z <= 0; below -120 it is 2^-120. */
static inline eight_floats NAME(exp2)(eight_floats z) {
    const eight_words low = z < -120.0f;
    const eight_floats lowest = {-120.0f, -120.0f, -120.0f, -120.0f, -120.0f, -120.0f, -120.0f, -120.0f};
    z = (eight_floats)(((eight_words)lowest & low) | ((eight_words)z & ~low));
    const eight_floats n = (z + 0x1.8p23f) - 0x1.8p23f, f = z - n;
    eight_floats p = f * C6;
    p = (p + C5) * f;
    p = (p + C4) * f;
    p = (p + C3) * f;
    p = (p + C2) * f;
    p = (p + C1) * f;
    p = p + C0;
    return p * (eight_floats)__builtin_convertvector((n + 127.0f) * 0x1p23f, eight_words);
}

/* Of both: as one vector where there are such wide ones. */
static inline void NAME(exp2_both)(eight_floats *a, eight_floats *b) {
#if defined(USE_AVX512)
    __m512 z = _mm512_insertf32x8(_mm512_castps256_ps512((__m256)*a), (__m256)*b, 1);
    /* A NaN is not below, and stays. */
    z = _mm512_mask_mov_ps(z, _mm512_cmp_ps_mask(z, _mm512_set1_ps(-120.0f), _CMP_LT_OQ), _mm512_set1_ps(-120.0f));
    const __m512 n = _mm512_roundscale_ps(z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(z, n);
    __m512 p = _mm512_mul_ps(f, _mm512_set1_ps(C6));
    p = _mm512_mul_ps(_mm512_add_ps(p, _mm512_set1_ps(C5)), f);
    p = _mm512_mul_ps(_mm512_add_ps(p, _mm512_set1_ps(C4)), f);
    p = _mm512_mul_ps(_mm512_add_ps(p, _mm512_set1_ps(C3)), f);
    p = _mm512_mul_ps(_mm512_add_ps(p, _mm512_set1_ps(C2)), f);
    p = _mm512_mul_ps(_mm512_add_ps(p, _mm512_set1_ps(C1)), f);
    p = _mm512_add_ps(p, _mm512_set1_ps(C0));
    /* p lies in 0.7..1.5 and n in -120..0: scaling by 2^n rounds nothing. */
    p = _mm512_scalef_ps(p, n);
    *a = (eight_floats)_mm512_castps512_ps256(p);
    *b = (eight_floats)_mm512_extractf32x8_ps(p, 1);
#else
    *a = NAME(exp2)(*a);
    *b = NAME(exp2)(*b);
#endif
}

/* 1 / (1 + e^-z), in float32. */
static inline void NAME(logistic_both)(eight *a, eight *b) {
    const eight z[2] = {*a, *b};
    const eight_floats one = {1, 1, 1, 1, 1, 1, 1, 1};
    eight_floats h[2];
    eight out[2];
    for (int k = 0; k < 2; k++) h[k] = __builtin_convertvector(NAME(size)(z[k]) * -LOG2_E, eight_floats);
    NAME(exp2_both)(h, h + 1);
    for (int k = 0; k < 2; k++) {
        /* Where a z below 0 has become -0, h is 1 too. */
        const eight_words up = __builtin_convertvector(z[k], eight_floats) >= 0;
        out[k] = NAME(wide)((eight_floats)(((eight_words)one & up) | ((eight_words)h[k] & ~up)) / (h[k] + 1.0f));
    }
    *a = out[0], *b = out[1];
}

/* The bit patterns of numbers without sign are in their order, and NaN is the largest. */
static inline double NAME(largest)(const double *x, int64_t n) {
    bits8 best = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        const bits8 bits = (bits8)NAME(load)(x + i, n - i, 0) & INT64_MAX, is = bits > best;
        best = (bits & is) | (best & ~is);
    }
    int64_t most = best[0];
    for (int l = 1; l < LANES; l++) most = best[l] > most ? best[l] : most;
    return from_bits(most);
}

static inline int64_t NAME(exponent_of)(const double *x, int64_t n) {
    double m = NAME(largest)(x, n);
    return (to_bits(m < TINY ? TINY : m) >> 52) - 1023;
}

/* y may be x. bits <= 26. */
static inline void NAME(rms_row)(const double *x, int64_t d, int64_t bits, const double *weight, double eps, double *y) {
    const int64_t e = NAME(exponent_of)(x, d);
    const double up = power_of_two(bits - 1 - e), step = power_of_two(e + 1 - bits);
    eight sums = {0};
    for (int64_t i = 0; i < d; i += LANES) {
        const eight t = NAME(whole)(NAME(load)(x + i, d - i, 0) * up);
        sums += t * t;
    }
    const double root = sqrt(NAME(sum_of)(sums) * step * step / (double)d + eps);
    for (int64_t i = 0; i < d; i += LANES)
        NAME(store)(y + i, d - i, NAME(load)(x + i, d - i, 0) / root * NAME(load)(weight + i, d - i, 0));
}

static void NAME(norm)(const float *x, int64_t n, int64_t d, const double *weight, const double *bias, double eps,
                       double *y) {
    const int64_t above = bits_above(d), sum_bits = 53 - above, square_bits = (53 - above) / 2;
    for (int64_t row = 0; row < n; row++, x += d, y += d) {
        for (int64_t i = 0; i < d; i++) y[i] = x[i];
        if (bias) {
            const int64_t e = NAME(exponent_of)(y, d);
            const double up = power_of_two(sum_bits - 1 - e);
            double sum = 0;
            for (int64_t i = 0; i < d; i++) sum += rint(y[i] * up);
            const double mean = sum * power_of_two(e + 1 - sum_bits) / (double)d;
            for (int64_t i = 0; i < d; i++) y[i] -= mean;
        }
        NAME(rms_row)(y, d, square_bits, weight, eps, y);
        if (bias)
            for (int64_t i = 0; i < d; i++) y[i] += bias[i];
    }
}

/* The pairs (i, i + half) of one head turned by their angles. */
static inline void NAME(turn)(double *y, int64_t half, const double *cos, const double *sin) {
    for (int64_t i = 0; i < half; i += LANES) {
        const int64_t m = half - i;
        const eight c = NAME(load)(cos + i, m, 0), s = NAME(load)(sin + i, m, 0);
        const eight a = NAME(load)(y + i, m, 0), b = NAME(load)(y + half + i, m, 0);
        const eight a_c = a * c, b_s = b * s, b_c = b * c, a_s = a * s;
        NAME(store)(y + i, m, a_c - b_s);
        NAME(store)(y + half + i, m, b_c + a_s);
    }
}

/* q = rint(x / scale), |x / scale| <= Q_MAX. */
static inline void NAME(integers)(const double *x, int64_t n, double scale, int16_t *q) {
    const double inverse = 1 / scale;
    eight far = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t m = n - i < LANES ? n - i : LANES;
        const eight t = NAME(load)(x + i, m, 0) * inverse, whole = NAME(whole)(t);
        far = NAME(larger)(NAME(size)(t - whole), far);
        const eight_shorts integers = __builtin_convertvector(__builtin_convertvector(whole, eight_words), eight_shorts);
        memcpy(q + i, &integers, (size_t)m * sizeof *q);
    }
    if (NAME(largest_of)(far) > SURE)
        for (int64_t i = 0; i < n; i++) q[i] = (int16_t)(int32_t)rint(x[i] / scale);
}

static void NAME(heads)(double *y, int64_t n, int64_t heads, int64_t kv_heads, int64_t dim, const double *query_norm,
                        const double *key_norm, double eps, const double *cos, const double *sin, int16_t *q,
                        double *scales) {
    int64_t all = heads + 2 * kv_heads, half = dim / 2, bits = (53 - bits_above(dim)) / 2;
    for (int64_t row = 0; row < n; row++)
        for (int64_t head = 0; head < all; head++, y += dim, q += dim, scales++) {
            const double *norm = head < heads ? query_norm : head < heads + kv_heads ? key_norm : 0;
            if (norm) NAME(rms_row)(y, dim, bits, norm, eps, y);
            if (cos && head < heads + kv_heads) NAME(turn)(y, half, cos + row * half, sin + row * half);
            double scale = NAME(largest)(y, dim) / Q_MAX;
            scale = scale < TINY ? TINY : scale;
            NAME(integers)(y, dim, scale, q);
            *scales = scale;
        }
}

static void NAME(gated)(const double *y, int64_t n, int64_t width, double *out) {
    for (int64_t row = 0; row < n; row++, y += 2 * width, out += width)
        for (int64_t i = 0; i < width; i += 2 * LANES) {
            const int64_t m = width - i, more = m > LANES ? m - LANES : 0;
            const eight a = NAME(load)(y + i, m, 0), b = NAME(load)(y + i + LANES, more, 0);
            eight c = a, d = b;
            NAME(logistic_both)(&c, &d);
            NAME(store)(out + i, m, a * c * NAME(load)(y + width + i, m, 0));
            NAME(store)(out + i + LANES, more, b * d * NAME(load)(y + width + i + LANES, more, 0));
        }
}

static void NAME(gelu)(const double *x, int64_t n, double *out) {
    for (int64_t i = 0; i < n; i += 2 * LANES) {
        const int64_t m = n - i, more = m > LANES ? m - LANES : 0;
        const eight a = NAME(load)(x + i, m, 0), b = NAME(load)(x + i + LANES, more, 0);
        eight c = (a * a * a * GELU_CUBE + a) * GELU_SLOPE, d = (b * b * b * GELU_CUBE + b) * GELU_SLOPE;
        NAME(logistic_both)(&c, &d);
        NAME(store)(out + i, m, a * c);
        NAME(store)(out + i + LANES, more, b * d);
    }
}

static void NAME(add)(const float *x, const double *y, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        float sum = (float)((double)x[i] + y[i]);
        out[i] = fabsf(sum) < 0x1p-126f ? 0.0f : sum;
    }
}

static void NAME(tap)(const double *x, int64_t n, int64_t width, const int64_t *where, int64_t count, char *out) {
    for (int64_t row = 0; row < n; row++, x += width) {
        double scale = NAME(largest)(x, width) / Q_MAX;
        scale = scale < TINY ? TINY : scale;
        memcpy(out, &scale, sizeof scale);
        out += sizeof scale;
        for (int64_t i = 0; i < count; i++, out += 2) {
            const int16_t q = (int16_t)(int32_t)rint(x[where[i]] / scale);
            memcpy(out, &q, sizeof q);
        }
    }
}

static int NAME(canonical)(const double *x, int64_t n, float *out) {
    uint32_t odd = 0;
    for (int64_t i = 0; i < n; i++) {
        const float y = (float)x[i];
        uint32_t bits;
        memcpy(&bits, &y, 4);
        odd |= (bits & 0x7f800000u) == 0x7f800000u;
        out[i] = fabsf(y) < 0x1p-126f ? 0.0f : y;
    }
    return !odd;
}

/* rint(2^30 * 2^z) with z = (x - max x) * 1000 / temperature * log2(e), z >= -120; y has room for n, rounded up to LANES.
 * Returns their sum. */
static int64_t NAME(weights)(const float *x, int64_t n, double temperature, int32_t *y) {
    float most = x[0];
    int64_t at = 0;
    if (n >= LANES) {
        eight_floats tops, next;
        memcpy(&tops, x, sizeof tops);
        for (at = LANES; at + LANES <= n; at += LANES) {
            memcpy(&next, x + at, sizeof next);
            const eight_words is = next > tops;
            tops = (eight_floats)(((eight_words)next & is) | ((eight_words)tops & ~is));
        }
        for (int l = 0; l < LANES; l++) most = tops[l] > most ? tops[l] : most;
    }
    for (; at < n; at++) most = x[at] > most ? x[at] : most;
    eight lowest = {0};
    lowest -= 120.0;
    bits8 sums = {0};
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t m = n - i < LANES ? n - i : LANES;
        eight_floats part = {0};
        memcpy(&part, x + i, (size_t)m * sizeof *x);
        const eight z = (NAME(wide)(part) - (double)most) * 1000.0 / temperature * LOG2_E;
        const eight_floats power = NAME(exp2)(__builtin_convertvector(NAME(larger)(z, lowest), eight_floats));
        eight_words weights = __builtin_convertvector(NAME(whole)(NAME(wide)(power) * 0x1p30), eight_words);
        for (int l = (int)m; l < LANES; l++) weights[l] = 0;
        memcpy(y + i, &weights, sizeof weights);
        sums += __builtin_convertvector(weights, bits8);
    }
    int64_t sum = 0;
    for (int l = 0; l < LANES; l++) sum += sums[l];
    return sum;
}
