/* Activations -> int16. */

/* q = rint(x / s) with s = max(max|x| / Q_MAX, 2^-400). A token with NaN or infinity gets the scale NaN. */
static void quantize(const double *x, int64_t n, int16_t *q, double *scale) {
    enum { STRETCH = 64 };
    /* The bit patterns of numbers without sign are in their order; infinity and NaN are the largest. */
    int64_t most = 0, i = 0;
    for (int64_t k = 0; k < n; k++) {
        const int64_t size = load8(x + k) & INT64_MAX;
        most = size > most ? size : most;
    }
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
    for (; i + STRETCH <= n; i += STRETCH) {
        double off[STRETCH];
        int64_t far = 0;
        for (int j = 0; j < STRETCH; j++) {
            const double t = x[i + j] * inverse, whole = rint(t);
            q[i + j] = (int16_t)(int32_t)whole;
            off[j] = fabs(t - whole);
        }
        for (int j = 0; j < STRETCH; j++) {
            const int64_t size = load8(off + j);
            far = size > far ? size : far;
        }
        if (far > load8(&limit))
            for (int j = 0; j < STRETCH; j++) q[i + j] = (int16_t)(int32_t)rint(x[i + j] / s);
    }
    for (; i < n; i++) q[i] = (int16_t)(int32_t)rint(x[i] / s);
}
