// The steps of the exact profile between its products: norms, rotations, attention, activations. docs/exact.md is the
// specification; efedllm/engine/exact/arithmetic.py and attention.py are the same in torch.
//
// Everything is either an element-wise IEEE operation, rounded by itself (compile with -ffp-contract=off, never with
// -ffast-math), or a maximum or a sum of integers that its type holds exactly, so that no order or vector width shows.
// NaN and infinity need no care: they reach the result as NaN or infinity, which the caller refuses.

#include <math.h>
#include <stdint.h>
#include <string.h>

#if !defined(EFL_PLAIN) && defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define WIDE
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, MOST_SPLIT = 512 };

static const double TINY = 0x1p-400, Q_MAX = 32639, LOG2_E = 0x1.71547652b82fep+0;
static const double GELU_CUBE = 0x1.6e4e26d4801f7p-5, GELU_SLOPE = 0x1.9884533d43651p+0;
static const float C0 = 0x1.0p+0f, C1 = 0x1.62e430p-1f, C2 = 0x1.ebfbe0p-3f, C3 = 0x1.c6b08ep-5f;
static const float C4 = 0x1.3b2ab6p-7f, C5 = 0x1.5d87fep-10f, C6 = 0x1.430912p-13f;

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

// The bit patterns of numbers without sign are in their order, and NaN is the largest.
INLINE double largest(const double *x, int64_t n) {
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

INLINE int64_t exponent_of(const double *x, int64_t n) {
    double m = largest(x, n);
    return (to_bits(m < TINY ? TINY : m) >> 52) - 1023;
}

static int64_t bits_above(int64_t n) {
    int64_t bits = 0;
    while (((n - 1) >> bits) > 0) bits++;
    return bits;
}

INLINE float exp2_below(float z) {
    z = z < -120.0f ? -120.0f : z;
    float n = rintf(z), f = z - n, p = f * C6;
    p = (p + C5) * f;
    p = (p + C4) * f;
    p = (p + C3) * f;
    p = (p + C2) * f;
    p = (p + C1) * f;
    p = p + C0;
    int32_t bits = (int32_t)((n + 127.0f) * 0x1p23f);
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

INLINE double logistic(double z) {
    float h = exp2_below((float)(fabs(z) * -LOG2_E));
    float one = z >= 0 ? 1.0f : h;
    return (double)(one / (h + 1.0f));
}

// y may be x.
INLINE void rms_row(const double *x, int64_t d, int64_t bits, const double *weight, double eps, double *y) {
    int64_t e = exponent_of(x, d);
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

// x float [n, d] -> y double [n, d]: RMSNorm, or LayerNorm with a bias.
WIDE void efl_norm(const float *x, int64_t n, int64_t d, const double *weight, const double *bias, double eps, double *y) {
    int64_t above = bits_above(d), sum_bits = 53 - above, square_bits = (53 - above) / 2;
    for (int64_t row = 0; row < n; row++, x += d, y += d) {
        for (int64_t i = 0; i < d; i++) y[i] = x[i];
        if (bias) {
            int64_t e = exponent_of(y, d);
            double up = power_of_two(sum_bits - 1 - e), sum = 0;
            for (int64_t i = 0; i < d; i++) sum += rint(y[i] * up);
            double mean = sum * power_of_two(e + 1 - sum_bits) / (double)d;
            for (int64_t i = 0; i < d; i++) y[i] -= mean;
        }
        rms_row(y, d, square_bits, weight, eps, y);
        if (bias)
            for (int64_t i = 0; i < d; i++) y[i] += bias[i];
    }
}

// y double [n, (heads + 2 * kv_heads) * dim], queries, keys and values, which it overwrites -> q int16 of the same shape
// and scales double [n, heads + 2 * kv_heads]. query_norm, key_norm: weights [dim] of head norms, or NULL. cos, sin
// double [n, dim / 2], or NULL for a model that turns nothing.
WIDE void efl_heads(double *y, int64_t n, int64_t heads, int64_t kv_heads, int64_t dim, const double *query_norm,
                    const double *key_norm, double eps, const double *cos, const double *sin, int16_t *q, double *scales) {
    int64_t all = heads + 2 * kv_heads, half = dim / 2, bits = (53 - bits_above(dim)) / 2;
    for (int64_t row = 0; row < n; row++)
        for (int64_t head = 0; head < all; head++, y += dim, q += dim, scales++) {
            const double *norm = head < heads ? query_norm : head < heads + kv_heads ? key_norm : 0;
            if (norm) rms_row(y, dim, bits, norm, eps, y);
            if (cos && head < heads + kv_heads)
                for (int64_t i = 0; i < half; i++) {
                    double c = cos[row * half + i], s = sin[row * half + i], a = y[i], b = y[i + half];
                    double a_c = a * c, b_s = b * s, b_c = b * c, a_s = a * s;
                    y[i] = a_c - b_s;
                    y[i + half] = b_c + a_s;
                }
            double scale = largest(y, dim) / Q_MAX;
            scale = scale < TINY ? TINY : scale;
            for (int64_t i = 0; i < dim; i++) q[i] = (int16_t)(int32_t)rint(y[i] / scale);
            *scales = scale;
        }
}

// sum q[i] * k[i], q = 256 * high + low: each sum below 2^15 * 2^7 * 512 = 2^31.
INLINE double dot(const int16_t *high, const int16_t *low, const int16_t *k, int64_t dim) {
    int32_t above = 0, below = 0;
    for (int64_t i = 0; i < dim; i++) above += (int32_t)high[i] * k[i];
    for (int64_t i = 0; i < dim; i++) below += (int32_t)low[i] * k[i];
    return (double)(256 * (int64_t)above + below);
}

typedef struct {
    const int16_t *keys, *values;               // [kv_heads, positions, dim], heads head_stride apart
    const double *key_scales, *value_scales;    // [kv_heads, positions], heads scale_stride apart
    int64_t kv_heads, positions, dim, head_stride, scale_stride;
} cached;

// The last n of the cached positions look back, with a window > 0 at that many. q int16 [n, heads, dim], tokens q_stride
// apart; factors double [n, heads], tokens factor_stride apart; out double [n, heads * dim]; work: 12 bytes a position.
// dim <= MOST_SPLIT.
WIDE void efl_attend(const cached *c, const int16_t *q, int64_t q_stride, const double *factors, int64_t factor_stride,
                     double scaling, int64_t n, int64_t heads, int64_t window, double *out, double *work) {
    int64_t dim = c->dim, share = heads / c->kv_heads;
    double *z = work;
    float *e = (float *)(work + c->positions);
    for (int64_t head = 0; head < heads; head++) {
        const int16_t *keys = c->keys + head / share * c->head_stride, *values = c->values + head / share * c->head_stride;
        const double *key_scales = c->key_scales + head / share * c->scale_stride;
        const double *value_scales = c->value_scales + head / share * c->scale_stride;
        for (int64_t row = 0; row < n; row++) {
            int64_t end = c->positions - n + row + 1, start = window > 0 && end > window ? end - window : 0;
            const int16_t *query = q + row * q_stride + head * dim;
            int16_t high[MOST_SPLIT], low[MOST_SPLIT];
            for (int64_t i = 0; i < dim; i++) {
                high[i] = (int16_t)((query[i] + 128) >> 8);
                low[i] = (int16_t)(query[i] - high[i] * 256);
            }
            double factor = factors[row * factor_stride + head] * scaling;
            double top = -INFINITY;
            for (int64_t j = start; j < end; j++) z[j] = dot(high, low, keys + j * dim, dim) * key_scales[j] * factor;
            for (int64_t j = start; j < end; j++) top = z[j] > top ? z[j] : top;
            for (int64_t j = start; j < end; j++) e[j] = exp2_below((float)(z[j] - top));
            double denominator = 0, most = 0;
            for (int64_t j = start; j < end; j++) denominator += rintf(e[j] * 0x1p24f);
            for (int64_t j = start; j < end; j++) z[j] = (double)e[j] * value_scales[j];
            for (int64_t j = start; j < end; j++) most = z[j] > most ? z[j] : most;
            double unit = most * 0x1p-20;
            for (int64_t j = start; j < end; j++) z[j] = rint(z[j] / unit);
            double sums[MOST_SPLIT] = {0};
            for (int64_t j = start; j < end; j++) {
                const int16_t *v = values + j * dim;
                double u = z[j];
                if (u == 0) continue;
                for (int64_t i = 0; i < dim; i++) sums[i] += u * v[i];
            }
            double *to = out + (row * heads + head) * dim, by = most * 0x1p4;
            for (int64_t i = 0; i < dim; i++) to[i] = sums[i] * by / denominator;
        }
    }
}

// y double [n, 2 * width], gate beside up -> silu(gate) * up, double [n, width].
WIDE void efl_gated(const double *y, int64_t n, int64_t width, double *out) {
    for (int64_t row = 0; row < n; row++, y += 2 * width, out += width)
        for (int64_t i = 0; i < width; i++) out[i] = y[i] * logistic(y[i]) * y[i + width];
}

// GELU by tanh, double [n].
WIDE void efl_gelu(const double *x, int64_t n, double *out) {
    for (int64_t i = 0; i < n; i++) {
        double cube = x[i] * x[i] * x[i];
        out[i] = x[i] * logistic((cube * GELU_CUBE + x[i]) * GELU_SLOPE);
    }
}

// canonical(x + y): float, without -0 and subnormal numbers.
WIDE void efl_add(const float *x, const double *y, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        float sum = (float)((double)x[i] + y[i]);
        out[i] = fabsf(sum) < 0x1p-126f ? 0.0f : sum;
    }
}
