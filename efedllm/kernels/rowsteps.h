/* Norms, heads and activations of steps.c, included once per instruction set with NAME set. */

/* The bit patterns of numbers without sign are in their order, and NaN is the largest. */
static inline double NAME(largest)(const double *x, int64_t n) {
    int64_t best[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            int64_t bits = to_bits(x[i + l]) & INT64_MAX;
            best[l] = bits > best[l] ? bits : best[l];
        }
    for (; i < n; i++) {
        int64_t bits = to_bits(x[i]) & INT64_MAX;
        best[0] = bits > best[0] ? bits : best[0];
    }
    for (int l = 1; l < LANES; l++) best[0] = best[l] > best[0] ? best[l] : best[0];
    return from_bits(best[0]);
}

static inline int64_t NAME(exponent_of)(const double *x, int64_t n) {
    double m = NAME(largest)(x, n);
    return (to_bits(m < TINY ? TINY : m) >> 52) - 1023;
}

/* y may be x. */
static inline void NAME(rms_row)(const double *x, int64_t d, int64_t bits, const double *weight, double eps, double *y) {
    int64_t e = NAME(exponent_of)(x, d);
    double up = power_of_two(bits - 1 - e), step = power_of_two(e + 1 - bits);
    double sums[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= d; i += LANES)
        for (int l = 0; l < LANES; l++) {
            double t = rint(x[i + l] * up);
            sums[l] += t * t;
        }
    for (; i < d; i++) {
        double t = rint(x[i] * up);
        sums[0] += t * t;
    }
    for (int l = 1; l < LANES; l++) sums[0] += sums[l];
    double root = sqrt(sums[0] * step * step / (double)d + eps);
    for (i = 0; i < d; i++) y[i] = x[i] / root * weight[i];
}

static void NAME(norm)(const float *x, int64_t n, int64_t d, const double *weight, const double *bias, double eps,
                       double *y) {
    int64_t above = bits_above(d), sum_bits = 53 - above, square_bits = (53 - above) / 2;
    for (int64_t row = 0; row < n; row++, x += d, y += d) {
        for (int64_t i = 0; i < d; i++) y[i] = x[i];
        if (bias) {
            int64_t e = NAME(exponent_of)(y, d), i = 0;
            double up = power_of_two(sum_bits - 1 - e), sums[LANES] = {0};
            for (; i + LANES <= d; i += LANES)
                for (int l = 0; l < LANES; l++) sums[l] += rint(y[i + l] * up);
            for (; i < d; i++) sums[0] += rint(y[i] * up);
            for (int l = 1; l < LANES; l++) sums[0] += sums[l];
            double mean = sums[0] * power_of_two(e + 1 - sum_bits) / (double)d;
            for (i = 0; i < d; i++) y[i] -= mean;
        }
        NAME(rms_row)(y, d, square_bits, weight, eps, y);
        if (bias)
            for (int64_t i = 0; i < d; i++) y[i] += bias[i];
    }
}

/* The pairs (i, i + half) of one head turned by their angles. */
static inline void NAME(turn)(double *y, int64_t half, const double *cos, const double *sin) {
    for (int64_t i = 0; i < half; i++) {
        double c = cos[i], s = sin[i], a = y[i], b = y[i + half];
        double a_c = a * c, b_s = b * s, b_c = b * c, a_s = a * s;
        y[i] = a_c - b_s;
        y[i + half] = b_c + a_s;
    }
}

/* q = rint(x / scale), |x / scale| <= Q_MAX. */
static inline void NAME(integers)(const double *x, int64_t n, double scale, int16_t *q) {
    double inverse = 1 / scale, far = 0;
    for (int64_t i = 0; i < n; i++) {
        double t = x[i] * inverse, whole = rint(t), off = fabs(t - whole);
        far = off > far ? off : far;
        q[i] = (int16_t)(int32_t)whole;
    }
    if (far > SURE)
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
        for (int64_t i = 0; i < width; i++) out[i] = y[i] * logistic(y[i]) * y[i + width];
}

static void NAME(gelu)(const double *x, int64_t n, double *out) {
    for (int64_t i = 0; i < n; i++) {
        double cube = x[i] * x[i] * x[i];
        out[i] = x[i] * logistic((cube * GELU_CUBE + x[i]) * GELU_SLOPE);
    }
}

static void NAME(add)(const float *x, const double *y, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        float sum = (float)((double)x[i] + y[i]);
        out[i] = fabsf(sum) < 0x1p-126f ? 0.0f : sum;
    }
}
