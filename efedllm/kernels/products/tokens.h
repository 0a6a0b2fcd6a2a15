/* Activations -> int16. */
#ifndef EFL_TOKENS_H
#define EFL_TOKENS_H

#include <float.h>
#include <math.h>

#include "layout.h"

/* q = rint(x / s) with s = max(max|x| / Q_MAX, 2^-400). A token with NaN or infinity gets the scale NaN. */
static void quantize(const double *x, int64_t n, int16_t *q, double *scale) {
    enum { STRETCH = 64 };
    /* The bit patterns of numbers without sign are in their order; infinity and NaN are the largest. Many maxima: one would
     * wait for itself at every step. */
    int64_t each[STRETCH] = {0}, most = 0, i = 0;
    for (; i + STRETCH <= n; i += STRETCH)
        for (int j = 0; j < STRETCH; j++) {
            const int64_t size = load8(x + i + j) & INT64_MAX;
            each[j] = size > each[j] ? size : each[j];
        }
    for (; i < n; i++) {
        const int64_t size = load8(x + i) & INT64_MAX;
        most = size > most ? size : most;
    }
    for (int j = 0; j < STRETCH; j++) most = each[j] > most ? each[j] : most;
    double largest;
    memcpy(&largest, &most, sizeof largest);
    if (!(largest <= DBL_MAX)) {
        *scale = NAN;
        memset(q, 0, (size_t)n * sizeof *q);
        return;
    }
    const double ratio = largest / Q_MAX, s = ratio < 0x1p-400 ? 0x1p-400 : ratio;
    *scale = s;
    /* A multiplication takes a fraction of a division. x * (1 / s) and x / s, both below 2^15, are less than 2^-36 apart, so
     * they round to the same integer where that is not near the middle of two; there it is divided. */
    const double inverse = 1 / s;
    const double limit = 0.5 - 0x1p-30;
    /* A sum with it is rounded to an integer, which its last bits are. */
    const double integers = 0x1.8p52;
    for (i = 0; i + STRETCH <= n; i += STRETCH) {
        double off[STRETCH];
        double far = 0;
        for (int j = 0; j < STRETCH; j++) {
            const double t = x[i + j] * inverse, shifted = t + integers, whole = shifted - integers;
            q[i + j] = (int16_t)load8(&shifted);
            off[j] = fabs(t - whole);
        }
        for (int w = STRETCH / 2; w >= 8; w /= 2)
            for (int j = 0; j < w; j++) off[j] = off[j] > off[j + w] ? off[j] : off[j + w];
        for (int j = 0; j < 8; j++) far = off[j] > far ? off[j] : far;
        if (far > limit)
            for (int j = 0; j < STRETCH; j++) q[i + j] = (int16_t)(int32_t)rint(x[i + j] / s);
    }
    for (; i < n; i++) q[i] = (int16_t)(int32_t)rint(x[i] / s);
}

#endif
